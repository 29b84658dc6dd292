"""Sparse voxel tensors: features on a set of voxels, and everything that follows from the coordinates alone.

Features change at every layer, coordinates only where the network pools or subdivides. A `Grid` therefore holds what
depends on coordinates (neighbours, attention windows, parents, children), each found when first asked for and then
shared by every tensor on that grid. Only this module writes into a grid.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .neighbours import find_neighbours

CHILD_OFFSETS = torch.tensor([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=torch.int32)
NUM_CHILDREN = len(CHILD_OFFSETS)


class Pooling(NamedTuple):
    """Where each voxel goes when every 2^3 cell becomes one voxel."""

    coarse: "Grid"
    parent: Int[Tensor, " num_voxels"]  # row in coarse, int32
    children: Int[Tensor, "8 num_coarse"]  # int32: row of the child at each of CHILD_OFFSETS, or -1
    divisor: Float[Tensor, " num_coarse"]  # of the mean of children: one more than there are


class Subdivision(NamedTuple):
    """Children of the voxels of a grid: of all of them, or of its leading rows, all 8 or some."""

    fine: "Grid"  # the children
    children: Int[Tensor, "8 num_parents"]  # int32: row of the child at each of CHILD_OFFSETS, or -1


class Places(NamedTuple):
    """Where voxels stand in dense bricks. Voxels of one shape are next to each other, and so are bricks."""

    bricks: "Grid"
    side: int  # of a brick, a power of 2
    place: Int[Tensor, " num_voxels"]  # int64: ((brick * side + x) * side + y) * side + z


class ShapeRows(NamedTuple):
    """The rows of each shape of a batch."""

    order: Int[Tensor, " num_voxels"]  # rows, those of one shape next to each other; int32
    offsets: Int[Tensor, " num_shapes_plus_1"]  # where each shape starts in `order`; int32


class Windows(NamedTuple):
    """Voxels grouped by the window of the grid that they lie in."""

    order: Int[Tensor, " num_voxels"]  # rows, those of one window next to each other
    position: Int[Tensor, " num_voxels"]  # of each row in `order`
    offsets: Int[Tensor, " num_windows_plus_1"]  # int32, where each window starts in `order`
    longest: int  # voxels in the fullest window


class Grid:
    """A batch of voxel sets. Coordinates must be unique and not negative; rows come in any order.

    Where `places` are known, pooling needs no sorting.
    """

    def __init__(
        self,
        coords: Int[Tensor, "num_voxels 4"],
        *,
        num_shapes: int | None = None,
        extent: int | None = None,
        places: Places | None = None,
    ):
        if coords.dtype != torch.int32 or coords.ndim != 2 or coords.shape[1] != 4:
            raise ValueError(f"coords are {coords.dtype} {tuple(coords.shape)}; expected int32 [N, 4]: batch, x, y, z")
        self.coords = coords.contiguous()
        if num_shapes is None or extent is None:  # one synchronisation, for grids that come from outside
            if len(coords) == 0:
                raise ValueError("coords are empty; a sparse tensor needs at least one voxel")
            highest = coords.amax(0).tolist()
            num_shapes, extent = highest[0] + 1, max(highest[1:]) + 1
        self.num_shapes = num_shapes
        self.extent = extent  # every x, y and z is below it
        self.places = places
        self.neighbours: Tensor | None = None  # once neighbour_table has been asked for them
        self._whole: Grid | None = None
        self._windows: dict[tuple[int, int], Windows] = {}  # by size and shift

    def __len__(self) -> int:
        return self.coords.shape[0]  # len() of a tensor takes three times as long, and is asked for at every layer

    @property
    def whole(self) -> "Grid":
        """The grid that this one is the leading rows of, or itself."""
        return self if self._whole is None else self._whole

    def leading(self, num_voxels: int) -> "Grid":
        """The first rows as a grid that shares the neighbour table of the whole."""
        if num_voxels == len(self):
            return self
        part = Grid(self.coords[:num_voxels], num_shapes=self.num_shapes, extent=self.extent)
        part._whole = self.whole
        return part

    def to(self, device: torch.device | str) -> "Grid":
        places = self.places
        if places is not None:
            place = places.place.to(device, non_blocking=True)
            places = Places(places.bricks.to(device), places.side, place)
        coords = self.coords.to(device, non_blocking=True)
        return Grid(coords, num_shapes=self.num_shapes, extent=self.extent, places=places)

    @cached_property
    def keys(self) -> Int[Tensor, " num_voxels"]:
        """One integer per voxel; equal coordinates have equal keys on any grid with this extent."""
        return voxel_keys(self.coords, self.extent)

    @cached_property
    def sorted_keys(self) -> tuple[Int[Tensor, " num_voxels"], Int[Tensor, " num_voxels"]]:
        """Keys in ascending order, and the row of each."""
        keys, order = self.keys.sort()
        return keys, order

    @cached_property
    def shape_rows(self) -> ShapeRows:
        shape = self.coords[:, 0].contiguous()
        starts = torch.arange(self.num_shapes + 1, dtype=torch.int32, device=shape.device)
        if self.places is not None or self.num_shapes == 1:
            order = torch.arange(len(self), dtype=torch.int32, device=shape.device)
        else:
            order = shape.argsort(stable=True).int()
            shape = shape[order]
        return ShapeRows(order, torch.searchsorted(shape, starts).int())

    @cached_property
    def pooling(self) -> Pooling:
        coarse, parent = self._parents_by_key() if self.places is None else self._parents_by_place(self.places)
        x, y, z = (self.coords[:, 1:] % 2).long().unbind(1)
        children = parent.new_full((NUM_CHILDREN, len(coarse)), -1, dtype=torch.int32)
        rows = torch.arange(len(self), dtype=torch.int32, device=parent.device)
        children.view(-1)[(x * 4 + y * 2 + z) * len(coarse) + parent] = rows
        return Pooling(coarse, parent.int(), children, 1 + (children >= 0).sum(0, dtype=torch.float32))

    def _parents_by_key(self) -> tuple["Grid", Int[Tensor, " num_voxels"]]:
        """The coarse grid, in the order of its keys, and the row of each voxel's parent."""
        extent = (self.extent + 1) // 2
        parents = self.coords.clone()
        parents[:, 1:] //= 2
        keys, parent = voxel_keys(parents, extent).unique(return_inverse=True)
        coords = torch.stack(torch.unravel_index(keys, (self.num_shapes, *[extent] * 3)), 1).int()
        return Grid(coords, num_shapes=self.num_shapes, extent=extent), parent

    def _parents_by_place(self, places: Places) -> tuple["Grid", Int[Tensor, " num_voxels"]]:
        """The same, in the order of places."""
        bricks, side, place = places
        half = side // 2
        x, y, z = place // side**2 % side, place // side % side, place % side
        parent_place = ((place // side**3 * half + x // 2) * half + y // 2) * half + z // 2
        row = torch.zeros(len(bricks) * half**3, dtype=torch.int64, device=place.device)
        row[parent_place] = 1
        taken = row.nonzero()[:, 0]
        row[taken] = torch.arange(len(taken), device=place.device)
        coords = bricks.coords[taken // half**3]
        local = torch.stack([taken // half**2 % half, taken // half % half, taken % half], 1)
        coords[:, 1:] = coords[:, 1:] * half + local
        places = Places(bricks, half, taken)
        return Grid(coords, num_shapes=self.num_shapes, extent=bricks.extent * half, places=places), row[parent_place]

    def pooled(self, times: int) -> "Grid":
        return self if times == 0 else self.pooling.coarse.pooled(times - 1)

    @cached_property
    def subdivision(self) -> Subdivision:
        """Every voxel replaced by its 8 children, children of one voxel next to each other in CHILD_OFFSETS order."""
        scaled = self.coords * torch.tensor([1, 2, 2, 2], dtype=torch.int32, device=self.coords.device)
        offsets = torch.nn.functional.pad(CHILD_OFFSETS.to(self.coords.device), (1, 0))
        coords = (scaled[:, None] + offsets).reshape(-1, 4)
        rows = torch.arange(len(coords), dtype=torch.int32, device=coords.device)
        fine = Grid(coords, num_shapes=self.num_shapes, extent=self.extent * 2)
        return Subdivision(fine, rows.view(-1, NUM_CHILDREN).T.contiguous())

    def subdivided(self, times: int) -> "Grid":
        return self if times == 0 else self.subdivision.fine.subdivided(times - 1)

    def windows(self, size: int, shift: int) -> Windows:
        """Windows of size^3 voxels, moved by `shift`: window index = (coordinate + shift) div size."""
        if (size, shift) not in self._windows:
            cells = self.coords.clone()
            cells[:, 1:] = (cells[:, 1:] + shift) // size
            keys = voxel_keys(cells, (self.extent + shift) // size + 1)
            order = keys.argsort(stable=True)
            counts = keys[order].unique_consecutive(return_counts=True)[1]
            offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
            position = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
            self._windows[size, shift] = Windows(order, position, offsets, int(counts.max()))
        return self._windows[size, shift]


@dataclass(frozen=True)
class SparseTensor:
    """Features on voxels: row i of `feats` belongs to the voxel in row i of `coords`, int32 (batch, x, y, z)."""

    coords: Int[Tensor, "num_voxels 4"]
    feats: Float[Tensor, "num_voxels channels"]
    known_grid: Grid | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.feats.shape[0] != len(self.grid):
            raise ValueError(f"feats have {len(self.feats)} rows but coords have {len(self.coords)}")

    @cached_property
    def grid(self) -> Grid:
        """Made from the coordinates where the tensor was not put on a known one."""
        return Grid(self.coords) if self.known_grid is None else self.known_grid

    @staticmethod
    def on(grid: Grid, feats: Float[Tensor, "num_voxels channels"]) -> "SparseTensor":
        return SparseTensor(grid.coords, feats, grid)

    def with_feats(self, feats: Float[Tensor, "num_voxels other_channels"]) -> "SparseTensor":
        return SparseTensor(self.coords, feats, self.grid)

    def to(self, device: torch.device | str) -> "SparseTensor":
        if self.coords.device == torch.device(device):
            return self
        return SparseTensor.on(self.grid.to(device), self.feats.to(device, non_blocking=True))


def mean_of_children(
    feats: Float[Tensor, "num_voxels channels"],
    children: Int[Tensor, "8 num_coarse"],
    divisor: Float[Tensor, " num_coarse"],
) -> Float[Tensor, "num_coarse channels"]:
    """Sum over the present children of each 2^3 cell, divided by one more than their number.

    The one more is the published network's: its scatter-mean counts the zeros it starts from as one more child
    (`include_self`), and its weights were trained with that.
    """
    padded = torch.nn.functional.pad(feats, (0, 0, 0, 1))
    rows = torch.where(children < 0, len(feats), children).T.flatten()
    sums = padded.index_select(0, rows).view(-1, NUM_CHILDREN, feats.shape[1]).sum(1)
    return sums / divisor[:, None].to(feats.dtype)


def share_of_children(
    grad_coarse: Float[Tensor, "num_coarse channels"],
    parent: Int[Tensor, " num_voxels"],
    divisor: Float[Tensor, " num_coarse"],
) -> Float[Tensor, "num_voxels channels"]:
    """The gradient of mean_of_children, by a gather: torch's own would add atomically, in a random order."""
    return (grad_coarse / divisor[:, None].to(grad_coarse.dtype)).index_select(0, parent)


def from_arrays(
    coords: Int[np.ndarray, "num_voxels 3"], values: Float[np.ndarray, " num_voxels"], *, extent: int
) -> SparseTensor:
    """One value per voxel of one shape. `extent` is the resolution of the grid that the voxels are on."""
    with_batch = np.pad(coords.astype(np.int32), ((0, 0), (1, 0)))
    return SparseTensor.on(
        Grid(torch.from_numpy(with_batch), num_shapes=1, extent=extent), torch.from_numpy(values)[:, None]
    )


def batch_tensors(tensors: list[SparseTensor]) -> SparseTensor:
    """Tensors of one shape each, made into one batch; shape i gets batch index i."""
    coords = torch.cat([t.coords for t in tensors])
    num_voxels = torch.tensor([len(t.grid) for t in tensors])
    index = torch.repeat_interleave(torch.arange(len(tensors), dtype=torch.int32), num_voxels)
    coords = torch.cat([index[:, None].to(coords.device), coords[:, 1:]], 1)
    grid = Grid(coords, num_shapes=len(tensors), extent=max(t.grid.extent for t in tensors))
    return SparseTensor.on(grid, torch.cat([t.feats for t in tensors]))


def neighbour_table(grid: Grid) -> Int[Tensor, "27 num_voxels"]:
    """Row of the voxel at each kernel offset (x slowest, as in the weight), or -1 where there is none; int32."""
    if grid.neighbours is None:
        grid.neighbours = find_neighbours(grid.coords, num_shapes=grid.num_shapes, extent=grid.extent)
    return grid.neighbours


def find_rows(
    coords: Int[Tensor, "num_wanted 4"], grid: Grid
) -> tuple[Int[Tensor, " num_wanted"], Bool[Tensor, " num_wanted"]]:
    """Row of each wanted voxel in the grid, and whether it is there (rows of absent ones mean nothing)."""
    inside = (coords[:, 1:] < grid.extent).all(1)
    sorted_keys, order = grid.sorted_keys
    wanted = voxel_keys(coords, grid.extent)
    position = torch.searchsorted(sorted_keys, wanted).clamp_(max=len(grid) - 1)
    return order[position], inside & (sorted_keys[position] == wanted)


def find_places(
    coords: Int[Tensor, "num_voxels 4"], bricks: Grid, side: int
) -> tuple[Int[Tensor, " num_voxels"], Bool[Tensor, " num_voxels"]]:
    """As in Places: where voxels stand in bricks, and whether their brick is there."""
    corners = coords.clone()
    corners[:, 1:] //= side
    brick, found = find_rows(corners, bricks)
    x, y, z = (coords[:, 1:] % side).long().unbind(1)
    return ((brick * side + x) * side + y) * side + z, found


def voxel_keys(coords: Int[Tensor, "num_voxels 4"], extent: int) -> Int[Tensor, " num_voxels"]:
    batch, x, y, z = coords.long().unbind(1)
    return ((batch * extent + x) * extent + y) * extent + z
