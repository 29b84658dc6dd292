"""Mesh files: finding them, reading them, and noticing when a file is not what its suffix says."""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from os import walk
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trimesh
from jaxtyping import Float, Int

from ..errors import InputError, printable

SUFFIXES = (".obj", ".stl", ".ply", ".glb", ".off")

# Peak memory of reading a file, per byte of it (measured, rounded up): a text says little per byte, a binary much.
_BYTES_A_BYTE = {".obj": 14, ".stl": 16, ".ply": 24, ".glb": 24, ".off": 14}
_MAX_BAD_FACES = 0.25  # share of faces with NaN or infinite corners up to which the others are still the mesh


class Mesh(NamedTuple):
    vertices: Float[np.ndarray, "num_vertices 3"]  # float64, in the file's own frame, scene transforms applied
    faces: Int[np.ndarray, "num_faces 3"]  # int64
    watertight: bool  # every edge has exactly two faces, vertices merged by position
    num_dropped: int = 0  # faces of the file that are not among these: degenerate, repeated, or not finite


def find_meshes(directory: Path) -> dict[str, Path]:
    """Every mesh file below a directory by name: the relative path without suffix, with it where two would collide.

    Links are followed, to files and to folders, each folder once.
    """
    files = sorted(p for p in _files_below(directory) if p.suffix.lower() in SUFFIXES)
    stems = [p.relative_to(directory).with_suffix("").as_posix() for p in files]
    count = Counter(stems)
    names = [
        stem if count[stem] == 1 else path.relative_to(directory).as_posix()
        for stem, path in zip(stems, files, strict=True)
    ]
    return {printable(name): path for name, path in zip(names, files, strict=True)}


def _files_below(directory: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, files in walk(directory, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link back up: it would never end
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in files)


def memory_to_load(path: Path) -> int:
    """About how many bytes of memory reading this file takes, by its size alone."""
    return path.stat().st_size * _BYTES_A_BYTE[path.suffix.lower()]


def load_mesh(path: Path) -> Mesh:
    """All triangles of a file as one mesh, cleaned of faces that say nothing: num_dropped counts them.

    Raises InputError with the reason why its content can't be used, OSError where the file is not there.
    """
    if not path.is_file():
        raise InputError("it is no ordinary file; expected a mesh; remove it")
    if path.stat().st_size == 0:
        raise InputError("the file is empty; expected a mesh; export it again")
    if path.suffix.lower() == ".stl":
        _check_stl_length(path)
    if path.suffix.lower() == ".ply":
        _check_ply_counts(path)
    try:
        with path.open("rb") as file:  # by its content: trimesh can't take every name
            scene = trimesh.load_scene(file, file_type=path.suffix.lower()[1:], process=False, skip_materials=True)
        mesh = scene.to_mesh()
    except MemoryError:
        raise  # the file's content is not to blame
    except Exception as error:  # parsers of many formats fail in many ways, and every one is the file's verdict
        reason = " ".join(str(error).split()) or "no further reason"
        raise InputError(
            f"the file can't be read as {path.suffix.lower()} ({type(error).__name__}: {reason[:300]}); export it again"
        ) from error
    if len(mesh.faces) == 0:
        raise InputError("the file holds no faces; expected triangles; export it as a surface, not as points or lines")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise InputError(
            f"faces use vertices {mesh.faces.min()} to {mesh.faces.max()} but there are {len(mesh.vertices)}; "
            "the file is damaged; export it again"
        )
    return clean(np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64))


def clean(vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]) -> Mesh:
    """The mesh without faces that are not finite, have no three different corners or are there already.

    Raises InputError where too few are left. A face and its reverse both stay, as the two sides of a wall do, unless
    every face has its reverse: then the file was exported double-sided, and one side is the mesh.
    """
    finite = np.isfinite(vertices[faces]).all((1, 2))
    if not finite.mean() >= 1 - _MAX_BAD_FACES:
        raise InputError(
            f"{int((~finite).sum())} of {len(faces)} faces have NaN or infinite vertices; expected finite ones; "
            "repair the file"
        )
    merged, triangles = merge_vertices(vertices, faces[finite])
    turned = (triangles.argmin(1)[:, None] + np.arange(3)) % 3
    _, first = np.unique(np.take_along_axis(triangles, turned, 1), axis=0, return_index=True)
    triangles = triangles[np.sort(first)]
    _, first = np.unique(np.sort(triangles, 1), axis=0, return_index=True)
    if 2 * len(first) == len(triangles):
        triangles = triangles[np.sort(first)]
    watertight = bool(trimesh.Trimesh(merged, triangles, process=False).is_watertight)
    return Mesh(merged, triangles, watertight, num_dropped=len(faces) - len(triangles))


def merge_vertices(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> tuple[Float[np.ndarray, "num_merged 3"], Int[np.ndarray, "num_kept 3"]]:
    """Vertices at one place, to 1e-8 of the mesh's size, made one: seams of texture would else look like holes.

    Unused vertices and faces left without three different vertices are dropped; all of them: InputError. (trimesh's own
    merge takes 1e-8 of a unit, which joins all of a mesh that is tiny or huge.)
    """
    used = vertices[faces.reshape(-1)]
    low, size = used.min(0), float(np.ptp(used, axis=0).max())
    if not np.isfinite(size):
        raise InputError("its coordinates are too large for a distance between them; scale the mesh down")
    places = np.rint((used - low) / (size or 1.0) * 1e8).astype(np.int64)
    _, first, index = np.unique(places, axis=0, return_index=True, return_inverse=True)
    merged = index.reshape(-1, 3)
    kept = (merged != np.roll(merged, 1, 1)).all(1)
    if not kept.any():
        raise InputError(f"all {len(faces)} faces have no area; expected a mesh with an extent; export it again")
    return used[first], merged[kept]


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


def _check_ply_counts(path: Path) -> None:
    """A PLY says how many rows it has; none takes less than a byte. (A reader makes room for what the header says.)"""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(8192).split(b"end_header")[0]
    said = sum(int(count) for count in re.findall(rb"(?m)^\s*element\s+\S+\s+(\d+)", header))
    if said > size:
        raise InputError(f"the file says {said} rows but has {size} bytes; it is damaged; export it again")
