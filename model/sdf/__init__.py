"""Triangles to a signed distance on the voxels near the surface, and back to triangles.

Arrays in, arrays out; one convention of space and sign, that of SparseSDF. Uses Warp for what is slow in numpy. What is
changed here changes the shapes that everything else is trained on.
"""

from .grid import Mode, SparseSDF, compile_kernels, normalised_surface, voxel_coords, voxelize
from .surface import Surface, extract_from_bricks, extract_mesh

__all__ = [
    "Mode",
    "SparseSDF",
    "Surface",
    "compile_kernels",
    "extract_from_bricks",
    "extract_mesh",
    "normalised_surface",
    "voxel_coords",
    "voxelize",
]
