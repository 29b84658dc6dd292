"""Mesh files: finding them, reading them, and noticing when a file is not what its suffix says."""

import struct
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trimesh
from jaxtyping import Float, Int

from model.errors import InputError

SUFFIXES = (".obj", ".stl", ".ply", ".glb", ".off")


class Mesh(NamedTuple):
    vertices: Float[np.ndarray, "num_vertices 3"]  # float64, in the file's own frame, scene transforms applied
    faces: Int[np.ndarray, "num_faces 3"]  # int64
    watertight: bool  # every edge has exactly two faces, vertices merged by position


def find_meshes(directory: Path) -> dict[str, Path]:
    """Every mesh file below a directory by name: the relative path without suffix, with it where two would collide."""
    files = sorted(p for p in directory.rglob("*") if p.suffix.lower() in SUFFIXES and not p.is_dir())
    stems = [p.relative_to(directory).with_suffix("").as_posix() for p in files]
    count = Counter(stems)
    return {
        stem if count[stem] == 1 else path.relative_to(directory).as_posix(): path
        for stem, path in zip(stems, files, strict=True)
    }


def load_mesh(path: Path) -> Mesh:
    """All triangles of a file as one mesh.

    Raises InputError with the reason why its content can't be used, OSError where the file is not there.
    """
    if path.stat().st_size == 0:
        raise InputError("the file is empty; expected a mesh; export it again")
    if path.suffix.lower() == ".stl":
        _check_stl_length(path)
    try:
        scene = trimesh.load_scene(path, process=False, skip_materials=True)
        mesh = scene.to_mesh()
    except MemoryError:
        raise  # the file's content is not to blame
    except Exception as error:  # parsers of many formats fail in many ways, and every one is the file's verdict
        reason = " ".join(str(error).split()) or "no further reason"
        raise InputError(
            f"the file can't be read as {path.suffix.lower()} ({type(error).__name__}: {reason}); export it again"
        ) from error
    if len(mesh.faces) == 0:
        raise InputError("the file holds no faces; expected triangles; export it as a surface, not as points or lines")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise InputError(
            f"faces use vertices {mesh.faces.min()} to {mesh.faces.max()} but there are {len(mesh.vertices)}; "
            "the file is damaged; export it again"
        )
    if not np.isfinite(mesh.vertices[mesh.faces]).all():
        raise InputError("some faces have NaN or infinite vertices; expected finite ones; repair the file")
    merged = merge_vertices(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64))
    return Mesh(*merged, watertight=bool(trimesh.Trimesh(*merged, process=False).is_watertight))


def merge_vertices(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> tuple[Float[np.ndarray, "num_merged 3"], Int[np.ndarray, "num_kept 3"]]:
    """Vertices at one place, to 1e-8 of the mesh's size, made one: seams of texture would else look like holes.

    Unused vertices and faces left without three different vertices are dropped. (trimesh's own merge takes 1e-8 of a
    unit, which joins all of a mesh that is tiny or huge.)
    """
    used = vertices[faces.reshape(-1)]
    low, size = used.min(0), float(np.ptp(used, axis=0).max())
    places = np.rint((used - low) / (size or 1.0) * 1e8).astype(np.int64)
    _, first, index = np.unique(places, axis=0, return_index=True, return_inverse=True)
    merged = index.reshape(-1, 3)
    kept = (merged != np.roll(merged, 1, 1)).all(1)
    return used[first], merged[kept] if kept.any() else merged


def _check_stl_length(path: Path) -> None:
    """A binary STL says how many triangles it has: 84 bytes, then 50 for each."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(84)
    if len(header) < 84 or header[:5].lower() == b"solid":
        return  # text, or a binary file whose free header begins like one: the reader decides
    said = struct.unpack("<I", header[80:])[0]
    if size != 84 + 50 * said:
        raise InputError(
            f"the file says {said} triangles but has room for {(size - 84) / 50:g}; it is damaged; export it again"
        )
