"""Meshes small enough to travel inside an HTML file, for page.js to unpack and draw.

A mesh is its vertices as 16-bit fixed point in the [-1, 1] cube and its faces as 32-bit integers, both as differences
from the value before, byte planes apart (neighbours are alike, so most bytes are 0 or 255), deflated, in base64.
"""

import zlib
from base64 import b64encode
from typing import TypedDict

import numpy as np
from jaxtyping import Int

from ..meshes import Mesh
from .gallery import Gallery

MAX_FACES = 40_000  # a mesh; four of them make about half a megabyte
FIXED_POINT = 32_000  # steps in a length of 1
COARSER = 0.85  # cells a side from one attempt at simplifying to the next


class PackedMesh(TypedDict):
    vertices: str
    faces: str
    num_vertices: int
    num_faces: int
    simplified: bool


class Scene(TypedDict):
    """One shape, its meshes in the order of the gallery's titles."""

    name: str
    center: list[float]  # of the truth's bounding box: what the camera turns about
    radius: float  # around it; holds the truth
    meshes: list[PackedMesh]


def scene_of(shape: str, gallery: Gallery) -> Scene:
    meshes = gallery.meshes(shape)
    used = meshes[0].vertices[meshes[0].faces.ravel()].astype(np.float64)
    center = (used.min(0) + used.max(0)) / 2
    radius = float(np.linalg.norm(used - center, axis=1).max())
    return Scene(name=shape, center=center.tolist(), radius=radius, meshes=[pack_mesh(mesh) for mesh in meshes])


def pack_mesh(mesh: Mesh) -> PackedMesh:
    small = simplify(mesh, MAX_FACES)
    fixed = np.round(np.clip(small.vertices, -1, 1) * FIXED_POINT).astype(np.int16)
    return PackedMesh(
        vertices=pack(fixed.T.ravel()),  # all x, all y, all z
        faces=pack(small.faces.ravel().astype(np.int32)),
        num_vertices=len(fixed),
        num_faces=len(small.faces),
        simplified=len(small.faces) < len(mesh.faces),
    )


def pack(values: Int[np.ndarray, " length"]) -> str:
    differences = np.diff(values, prepend=values.dtype.type(0))  # wraps around, as adding up does
    planes = differences.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, values.itemsize).T
    return b64encode(zlib.compress(planes.tobytes(), 9)).decode()


def simplify(mesh: Mesh, max_faces: int) -> Mesh:
    """The mesh itself where it is small enough, else with near vertices merged (Rossignac and Borrel 1993)."""
    small, cells = mesh, float(max_faces) ** 0.5
    while len(small.faces) > max_faces:
        small = cluster(mesh, cells)
        cells *= COARSER
    return small


def cluster(mesh: Mesh, cells: float) -> Mesh:
    """Vertices of one cell of a grid, `cells` to a length of 2, become their mean; faces that collapse go."""
    grid = np.floor((mesh.vertices + 1) * (cells / 2)).astype(np.int64)
    _, cell, counts = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), 3))
    np.add.at(sums, cell, mesh.vertices)
    faces = cell[mesh.faces]
    a, b, c = faces.T
    return Mesh(sums / counts[:, None], np.unique(faces[(a != b) & (b != c) & (c != a)], axis=0))
