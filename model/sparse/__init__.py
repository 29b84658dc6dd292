"""Sparse voxel tensors, and the layers that act on them: convolutions, normalisation, pooling.

Knows no network and no distance. kernels/ has the Triton kernels of what is slow otherwise; each computes what its
neighbour in plain torch computes, and the tests compare them.
"""

from .child_conv import ChildConv3d
from .conv import SubMConv3d, compute_dtype, sum_dtype
from .norm import GroupNormSiLU
from .symmetry import SYMMETRIES, transform_coords
from .tensor import (
    NUM_CHILDREN,
    Grid,
    Places,
    SparseTensor,
    Subdivision,
    Windows,
    batch_tensors,
    find_places,
    find_rows,
    from_arrays,
    neighbour_table,
    voxel_keys,
)

__all__ = [
    "NUM_CHILDREN",
    "SYMMETRIES",
    "ChildConv3d",
    "Grid",
    "GroupNormSiLU",
    "Places",
    "SparseTensor",
    "SubMConv3d",
    "Subdivision",
    "Windows",
    "batch_tensors",
    "compute_dtype",
    "find_places",
    "find_rows",
    "from_arrays",
    "neighbour_table",
    "sum_dtype",
    "transform_coords",
    "voxel_keys",
]
