"""Overlap of two solids: how much of what is inside either is inside both."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from ..bricks import BRICK_SIZE
from .signed_distance import SurfaceQuery

IOU_NOISE = (0.01, 0.05)  # range of the standard deviation of the points around the surface

_CORNERS = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])  # of a cell of the grid
_STEPS = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)])


class Field(NamedTuple):
    """A signed distance, positive outside and in any unit, at some voxels of the grid over [-1, 1]^3.

    Voxels are unique and in any order; voxel i of an axis has its centre at (i + 0.5) * 2 / resolution - 1.
    """

    coords: Int[np.ndarray, "num_voxels 3"]
    sdf: Float[np.ndarray, " num_voxels"]
    resolution: int


class FieldSolid:
    """Where a field is negative: trilinear between eight stored voxels, elsewhere the sign of the nearest stored one.

    The surface that marching cubes draws lies between the same voxels; but what is inside is known here everywhere in
    the cube, however open that surface is. At least one voxel is needed.
    """

    low, high = -np.ones(3), np.ones(3)  # corners of a box that holds all of it: there is nothing outside the cube

    def __init__(self, field: Field) -> None:
        self._field = field
        bricks_a_side = -(-field.resolution // BRICK_SIZE)
        brick = np.ravel_multi_index(tuple((field.coords // BRICK_SIZE).T), (bricks_a_side,) * 3)
        occupied = np.unique(brick)
        self._slot = np.full(bricks_a_side**3, -1)
        self._slot[occupied] = np.arange(len(occupied))
        self._bricks_a_side = bricks_a_side
        self._values = np.full((len(occupied), BRICK_SIZE, BRICK_SIZE, BRICK_SIZE), np.nan)
        self._values[(self._slot[brick], *(field.coords % BRICK_SIZE).T)] = field.sdf
        # A point outside all voxels has its nearest voxel among those that lack a neighbour: a step towards the point
        # would else be nearer. So the others need not be searched.
        rim = np.flatnonzero(np.any([np.isnan(self._at(field.coords + step)) for step in _STEPS], axis=0))
        self._rim_sdf = field.sdf[rim]
        self._rim = cKDTree(field.coords[rim], balanced_tree=False)

    def inside(self, points: Float[np.ndarray, "num_points 3"]) -> Bool[np.ndarray, " num_points"]:
        places = (np.asarray(points, np.float64) + 1) * (self._field.resolution / 2) - 0.5  # in voxels
        low = np.floor(places).astype(np.int64)
        share = places - low
        values = np.zeros(len(places))
        for corner in _CORNERS:
            values += np.where(corner, share, 1 - share).prod(1) * self._at(low + corner)
        rows = np.flatnonzero(np.isnan(values))  # some corner is not stored
        values[rows] = self._at(np.round(places[rows]).astype(np.int64))
        rows = rows[np.isnan(values[rows])]
        if len(rows):
            values[rows] = self._rim_sdf[self._rim.query(places[rows], workers=-1)[1]]
        return values < 0

    def _at(self, voxels: Int[np.ndarray, "num_voxels 3"]) -> Float[np.ndarray, " num_voxels"]:
        """The stored values, NaN where there is none."""
        inside = np.asarray(((voxels >= 0) & (voxels < self._field.resolution)).all(1))
        kept = np.where(inside[:, None], voxels, 0)
        slot = self._slot[np.ravel_multi_index(tuple((kept // BRICK_SIZE).T), (self._bricks_a_side,) * 3)]
        return np.where(inside & (slot >= 0), self._values[(slot, *(kept % BRICK_SIZE).T)], np.nan)


Solid = FieldSolid | SurfaceQuery  # either knows what is inside it, and a box that holds it


class Ious(NamedTuple):
    """Of two solids; None where no point lies in either, as they are too thin for so many points."""

    volume: float | None  # V-IoU: over the box around both
    surface: float | None  # S-IoU: over points near the true surface


class TrueSolid:
    """A true solid and the points at which predictions are asked: the same for each, so that differences pair."""

    def __init__(self, solid: Solid, near: Float[np.ndarray, "num_points 3"], *, seed: Sequence[int]) -> None:
        """`near` are points near the true surface; as many more are drawn in its box."""
        self._solid, self._seed = solid, seed
        self._near, self._near_inside = near, solid.inside(near)
        self._box = solid.low + np.random.default_rng([*seed, 0]).random(near.shape) * (solid.high - solid.low)
        self._box_inside = solid.inside(self._box)

    def ious(self, pred: Solid) -> Ious:
        return Ious(self._volume_iou(pred), _iou(pred.inside(self._near), self._near_inside))

    def _volume_iou(self, pred: Solid) -> float | None:
        """Points in the truth's box and points around it are drawn apart and weighted by the volumes they stand for.

        The mean is that over uniform points of the whole, with far less noise where the truth is thin.
        """
        low, high = np.minimum(self._solid.low, pred.low), np.maximum(self._solid.high, pred.high)
        box = float(np.prod(self._solid.high - self._solid.low))
        around = low + np.random.default_rng([*self._seed, 1]).random(self._box.shape) * (high - low)
        around = around[((around < self._solid.low) | (around > self._solid.high)).any(1)]
        surplus = float(pred.inside(around).mean()) * (float(np.prod(high - low)) - box) if len(around) else 0.0
        inside = pred.inside(self._box)
        union = float((inside | self._box_inside).mean()) * box + surplus
        return float((inside & self._box_inside).mean()) * box / union if union else None


def _iou(a: Bool[np.ndarray, " num_points"], b: Bool[np.ndarray, " num_points"]) -> float | None:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None
