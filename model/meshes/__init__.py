"""A mesh file to triangles: one reader a format, what was read held against what the file declares, cleaning. And back.

May import model.errors alone. A reader returns all that its file holds or raises InputError with the reason; what is
harmless and left out stands in the mesh's notes. A new format is a module with `read`, named in load.py.
"""

from .files import SUFFIXES, find_meshes, irregular_files, memory_to_load, sha256_of
from .load import ChangedError, load_mesh
from .mesh import Mesh, is_closed
from .write import glb_bytes, obj_bytes, ply_bytes

__all__ = [
    "SUFFIXES",
    "ChangedError",
    "Mesh",
    "find_meshes",
    "glb_bytes",
    "irregular_files",
    "is_closed",
    "load_mesh",
    "memory_to_load",
    "obj_bytes",
    "ply_bytes",
    "sha256_of",
]
