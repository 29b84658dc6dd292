"""A shape as rooms hand it on: signed distance on bricks of voxels near its surface, or triangles.

How one is made from the other is in model.sdf, which most stages do without.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from .bricks import BRICK_SIZE, BRICK_VOXELS

_ROWS_AT_ONCE = 2**18  # bounds the memory beside the result

SDFMode = Literal["solid", "shell", "mixed"]
Vertices = Float[np.ndarray, "num_vertices 3"]
Faces = Int[np.ndarray, "num_faces 3"]  # indices of vertices, counterclockwise from outside


class Surface(NamedTuple):
    vertices: Vertices  # float32, in the [-1, 1] cube
    faces: Faces  # int32, counter-clockwise seen from outside

    def in_frame(self, center: Float[np.ndarray, "3"], scale: float) -> "Surface":
        """The same surface in a mesh's own frame: world = cube * scale + center. Vertices become float64."""
        return Surface(self.vertices.astype(np.float64) * scale + np.asarray(center, np.float64), self.faces)


@dataclass(frozen=True)
class SparseSDF:
    """Signed distance, positive outside, at the voxels near a surface, and the sign at all voxels of their bricks.

    The grid covers [-1, 1]^3; voxel i of an axis has its centre at (i + 0.5) * 2 / resolution - 1. Rows go brick by
    brick, bricks and the voxels in each in C order of x, y, z.
    """

    coords: Int[np.ndarray, "num_voxels 3"]  # int32, the band: |sdf| < 1
    sdf: Float[np.ndarray, " num_voxels"]  # float32, distance / (truncation_voxels * 2 / resolution)
    resolution: int
    truncation_voxels: float
    center: Float[np.ndarray, "3"]  # float64: world = cube * scale + center
    scale: float
    brick_coords: Int[np.ndarray, "num_bricks 3"]  # int32, the 8^3 bricks that hold at least one voxel of the band
    brick_inside: Bool[np.ndarray, "num_bricks 8 8 8"]
    bad_flip_ratio: float  # share of the sign changes between neighbours where no surface can be; 0 on closed meshes
    # "shell": distance to the surface less one voxel; "mixed": a solid, and a shell where it is too thin to be seen.
    # bad_flip_ratio is that of the solid before.
    mode: SDFMode = "solid"
    lost_area_share: float | None = None  # of the mesh's area, what no voxel near it shows; None where not known

    @cached_property
    def brick_band(self) -> Bool[np.ndarray, "num_bricks 8 8 8"]:
        """Which voxels of each brick are rows of `coords`."""
        grid = (self.resolution // BRICK_SIZE,) * 3
        starts = np.empty(np.prod(grid), np.int32)
        places = np.ravel_multi_index(tuple(self.brick_coords.T), grid)
        starts[places] = np.arange(len(places)) * BRICK_VOXELS
        band = np.zeros(self.brick_inside.shape, bool)
        for first in range(0, len(self.coords), _ROWS_AT_ONCE):
            rows = np.ascontiguousarray(self.coords[first : first + _ROWS_AT_ONCE].T)
            bricks = rows // BRICK_SIZE
            start = starts[np.ravel_multi_index(tuple(bricks), grid)]
            local = np.ravel_multi_index(tuple(rows - bricks * BRICK_SIZE), band.shape[1:])
            band.reshape(-1)[start + local] = True
        return band

    def beyond(self) -> tuple[Int[np.ndarray, "num_beyond 3"], Float[np.ndarray, " num_beyond"]]:
        """The voxels of the bricks that are not in the band: coords, and sign +1 outside or -1 inside."""
        beyond = ~self.brick_band
        return voxel_coords(self.brick_coords, beyond), np.where(self.brick_inside[beyond], -1, 1).astype(np.float32)


def voxel_coords(
    brick_coords: Int[np.ndarray, "num_bricks 3"], chosen: Bool[np.ndarray, "num_bricks 8 8 8"]
) -> Int[np.ndarray, "num_voxels 3"]:
    """The chosen voxels, brick by brick, each brick in C order."""
    brick, *local = np.nonzero(chosen)
    return (brick_coords[brick] * BRICK_SIZE + np.stack(local, 1)).astype(np.int32)
