"""The 48 symmetries of the cube: axis permutations with flips. They map the voxel grid onto itself exactly."""

from itertools import permutations, product

import numpy as np
from jaxtyping import Int

SYMMETRIES = tuple(product(permutations(range(3)), product((False, True), repeat=3)))  # number 0 changes nothing


def transform_coords(
    coords: Int[np.ndarray, "num_voxels 3"], symmetry: int, *, resolution: int
) -> Int[np.ndarray, "num_voxels 3"]:
    """Coordinates of the same voxels after symmetry number 0 to 47 of the [-1, 1] cube. SDF values do not change."""
    axes, flips = SYMMETRIES[symmetry]
    moved = coords[:, axes]
    return np.where(flips, resolution - 1 - moved, moved).astype(coords.dtype)
