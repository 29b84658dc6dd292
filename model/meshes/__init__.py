"""Mesh files to triangles.

Reads a file, checks that it is what it says it is, and cleans what was read. Knows files and arrays, nothing of grids
or networks. A new format is a module here and a suffix in its list.
"""

from .files import SUFFIXES, find_meshes, load_mesh, memory_to_load

__all__ = [
    "SUFFIXES",
    "find_meshes",
    "load_mesh",
    "memory_to_load",
]
