"""Triangles to a signed distance on the voxels near the surface, and back to triangles.

Arrays in, arrays out; one convention of space and sign, that of SparseSDF. Uses Warp for what is slow in numpy. What is
changed here changes the shapes that everything else is trained on.
"""

from ..sparse_sdf import SparseSDF, Surface
from .grid import Mode, compile_kernels, normalised_surface, voxelize
from .surface import extract_from_bricks, extract_mesh, grid_surface

__all__ = [
    "Mode",
    "SparseSDF",
    "Surface",
    "compile_kernels",
    "extract_from_bricks",
    "extract_mesh",
    "grid_surface",
    "normalised_surface",
    "voxelize",
]
