"""Triangles as a file holds them to a mesh: without what says nothing, vertices at one place made one."""

from types import MappingProxyType

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from .mesh import Faces, Mesh, Vertices, number_rows
from .raw import Notes, told

_MAX_BAD_FACES = 0.25  # share of faces with NaN or infinite corners up to which the others are still the mesh
_PLACES = 1e8  # places a mesh has along its longest side: vertices at one of them are one


def clean(vertices: Vertices, faces: Faces, notes: Notes = MappingProxyType({})) -> Mesh:
    """The mesh without faces that are not finite, have no three different corners or are there already.

    Vertices that no face uses go as well. A face and its reverse both stay, as the two sides of a wall do, unless every
    face has its reverse: then the file was exported double-sided, and one side is the mesh. What was dropped is noted.
    Raises InputError where too few faces are left.
    """
    finite = np.isfinite(vertices)
    whole = faces if finite.all() else faces[finite.all(1)[faces].all(1)]
    num_bad = len(faces) - len(whole)
    if num_bad > _MAX_BAD_FACES * len(faces):
        raise InputError(
            f"{num_bad} of {len(faces)} faces have NaN or infinite vertices; expected finite ones; repair the file"
        )
    places, triangles = _merge_vertices(vertices, whole)
    single = _without_repeated(triangles, len(places))
    one_side = _without_reverses(single, len(places))
    dropped = {
        "faces with NaN or infinite vertices dropped": num_bad,
        "faces without three different corners dropped": len(whole) - len(triangles),
        "repeated faces dropped": len(triangles) - len(single),
        "second sides of a double-sided mesh dropped": len(single) - len(one_side),
    }
    return Mesh(places, one_side, told({**notes, **dropped}), num_dropped=len(faces) - len(one_side))


def _merge_vertices(
    vertices: Vertices, faces: Faces
) -> tuple[Float[np.ndarray, "num_merged 3"], Int[np.ndarray, "num_kept 3"]]:
    """Vertices at one place, to 1e-8 of the mesh's size, made one: seams of texture would else look like holes.

    Merged vertices are in the order of their places along x, y, z; each has the coordinates of the first corner there.
    Unused vertices and faces left without three different vertices are dropped; all of them: InputError.
    """
    used, corners = _in_order_of_use(vertices, faces.reshape(-1))
    number, first = number_rows(used)
    distinct, corners = used[first].astype(np.float64), number[corners]
    low = distinct.min(0)
    with np.errstate(over="ignore"):
        size = float((distinct.max(0) - low).max())
    if not np.isfinite(size):
        raise InputError("its coordinates are too large for a distance between them; scale the mesh down")
    order, rank = _by_place(np.rint((distinct - low) / (size or 1.0) * _PLACES).astype(np.int64))
    merged = rank[corners].reshape(-1, 3)
    a, b, c = merged.T
    kept = (a != b) & (b != c) & (c != a)
    if not kept.any():
        raise InputError(f"all {len(faces)} faces have no area; expected a mesh with an extent; export it again")
    return distinct[order], merged if kept.all() else merged[kept]


def _in_order_of_use(
    vertices: Vertices, corners: Int[np.ndarray, " num_corners"]
) -> tuple[Float[np.ndarray, "num_used 3"], Int[np.ndarray, " num_corners"]]:
    """The vertices that corners use, in the order in which they are first used, and the corners' numbers in it."""
    first = np.full(len(vertices), -1, np.int64)
    first[corners[::-1]] = np.arange(len(corners) - 1, -1, -1)  # of repeated indices, the last assignment stays
    used = np.flatnonzero(first >= 0)
    order = first[used]
    if (order[1:] > order[:-1]).all():
        if len(used) == len(vertices):
            return vertices, corners
    else:
        used = used[np.argsort(order)]
    number = np.empty(len(vertices), np.int64)
    number[used] = np.arange(len(used))
    return vertices[used], number[corners]


def _by_place(
    places: Int[np.ndarray, "num_vertices 3"],
) -> tuple[Int[np.ndarray, " num_places"], Int[np.ndarray, " num_vertices"]]:
    """The first vertex at each place, places sorted by x, y, z, and for each vertex the number of its place.

    Coordinates are from 0 to 1e8, less than 2^27: x, y and the upper bits of z make one number of 63 bits to sort by.
    """
    x, y, z = places.T
    key = (x << 36) | (y << 9) | (z >> 18)
    order = np.argsort(key, kind="stable")
    ties = key[order[1:]] == key[order[:-1]]
    if ties.any():
        rows = np.flatnonzero(np.append(ties, False) | np.insert(ties, 0, False))
        among = order[rows]
        order[rows] = among[np.lexsort((z[among], key[among]))]  # stable: equal places stay in their order
    new = np.ones(len(order), bool)
    new[1:] = (key[order[1:]] != key[order[:-1]]) | (z[order[1:]] != z[order[:-1]])
    rank = np.empty(len(order), np.int64)
    rank[order] = np.cumsum(new) - 1
    return order[new], rank


def _without_repeated(faces: Faces, num_vertices: int) -> Int[np.ndarray, "num_kept 3"]:
    """Of faces with the same corners in the same direction, the first."""
    a, b, c = faces.T
    low = np.minimum(np.minimum(a, b), c)
    after = np.where(low == a, b, np.where(low == b, c, a))
    last = a + b + c - low - after
    return _first_of_each(faces, low, after, last, num_vertices)


def _without_reverses(faces: Faces, num_vertices: int) -> Int[np.ndarray, "num_kept 3"]:
    """If every face has its reverse, the first of each pair; else all. No face is there twice."""
    if not _has_reverse(faces):
        return faces
    low, middle, high = np.sort(faces, axis=1).T
    kept = _first_of_each(faces, low, middle, high, num_vertices)
    return kept if 2 * len(kept) == len(faces) else faces


def _has_reverse(faces: Faces) -> bool:
    """Whether the first face's reverse is among the faces: a quick no for most meshes."""
    a, b, c = faces[1:].T
    first = faces[0, 0]
    others = faces[1:][(a == first) | (b == first) | (c == first)]
    return bool((np.sort(others, axis=1) == np.sort(faces[0])).all(1).any())


def _first_of_each(
    faces: Faces,
    a: Int[np.ndarray, " num_faces"],
    b: Int[np.ndarray, " num_faces"],
    c: Int[np.ndarray, " num_faces"],
    num_vertices: int,
) -> Int[np.ndarray, "num_kept 3"]:
    """The faces in their order, of those with equal a, b and c the first."""
    pair = a * num_vertices + b
    if num_vertices >= 2**21:  # three numbers of 21 bits fit in one of 63
        _, pair = np.unique(pair, return_inverse=True)
    key = pair * num_vertices + c
    ordered = np.sort(key)
    if not (ordered[1:] == ordered[:-1]).any():
        return faces
    _, first = np.unique(key, return_index=True)
    return faces[np.sort(first)]
