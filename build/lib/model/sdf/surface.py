"""Marching cubes on a sparse grid: only in cells whose 8 corners are all stored, with memory for stored voxels only.

The 256 cases are generated, not typed in. On every cube face the crossings of one run of inside corners are joined; the
rule sees nothing but the face, so the two cells that share it agree and a surface can only end where voxels end.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CORNERS = np.array(list(product((0, 1), repeat=3)))  # corner 4 x + 2 y + z
_EDGES = [(corner, axis) for corner in range(8) for axis in range(3) if CORNERS[corner][axis] == 0]
_STEP = (4, 2, 1)  # from a corner to its neighbour along x, y, z


class Surface(NamedTuple):
    vertices: Float[np.ndarray, "num_vertices 3"]  # float32, in the [-1, 1] cube
    faces: Int[np.ndarray, "num_faces 3"]  # int32, counter-clockwise seen from outside


def extract_mesh(
    coords: Int[np.ndarray, "num_voxels 3"],
    sdf: Float[np.ndarray, " num_voxels"],
    *,
    resolution: int,
    iso_level: float = 0.0,
) -> Surface:
    """The surface where the SDF (positive outside, any unit) crosses `iso_level`; voxels must be unique, in any order.

    Vertices are shared by all faces around them. Returns no vertices and no faces where nothing crosses.
    """
    coords, values = np.asarray(coords, np.int64), np.asarray(sdf, np.float64).reshape(-1) - iso_level
    if coords.ndim != 2 or coords.shape[1] != 3 or len(coords) != len(values):
        raise ValueError(f"coords are {coords.shape} and sdf {values.shape}; expected [N, 3] and [N]")
    stride = resolution + 1  # one more than the grid, so that no neighbour wraps around
    keys = (coords[:, 0] * stride + coords[:, 1]) * stride + coords[:, 2]
    order = keys.argsort(kind="stable")
    coords, values, keys = coords[order], values[order], keys[order]

    corners = _cell_corners(keys, values < 0, stride)
    case = ((values[corners] < 0) << np.arange(8)).sum(1)
    counts = _NUM_TRIANGLES[case]
    cell = np.repeat(np.arange(len(case)), counts)
    triangle = np.arange(len(cell)) - np.repeat(counts.cumsum() - counts, counts)
    edge = _TRIANGLES[case[cell], triangle]  # [num_faces, 3]

    # A grid edge is its lower voxel and its axis: the identity by which cells share vertices.
    lower, axis = np.array(_EDGES).T
    upper = lower + np.array(_STEP)[axis]
    identity, first, faces = np.unique(
        corners[cell[:, None], lower[edge]] * 3 + axis[edge], return_index=True, return_inverse=True
    )
    start, end = identity // 3, corners[np.repeat(cell, 3)[first], upper[edge.reshape(-1)[first]]]
    along = values[start] / (values[start] - values[end])
    position = coords[start] + 0.5 + along[:, None] * (coords[end] - coords[start])
    vertices = position * (2 / resolution) - 1
    return Surface(vertices.astype(np.float32).reshape(-1, 3), faces.reshape(-1, 3).astype(np.int32))


def _cell_corners(keys: Int[np.ndarray, " num_voxels"], inside: np.ndarray, stride: int) -> np.ndarray:
    """Rows of the 8 corners of every cell that has them all and in which the sign changes. [num_cells, 8]"""
    cells = np.arange(len(keys))
    rows = cells[:, None]
    for corner in CORNERS[1:]:
        wanted = keys[cells] + (corner[0] * stride + corner[1]) * stride + corner[2]
        found = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        stored = keys[found] == wanted if len(keys) else np.zeros(0, bool)
        cells, rows = cells[stored], np.column_stack([rows[stored], found[stored]])
    num_inside = inside[rows].sum(1)
    return rows[(num_inside > 0) & (num_inside < 8)]


def _face_cycles() -> list[list[int]]:
    """The corners of each of the 6 cube faces, counter-clockwise seen from outside the cube."""
    cycles = []
    for axis, side in product(range(3), (0, 1)):
        u, v = _STEP[(axis + 1) % 3], _STEP[(axis + 2) % 3]
        origin = side * _STEP[axis]
        cycle = [origin, origin + u, origin + u + v, origin + v]
        cycles.append(cycle if side else cycle[::-1])
    return cycles


_FACES = _face_cycles()
_EDGE_OF = {frozenset((c, c + _STEP[a])): i for i, (c, a) in enumerate(_EDGES)}
_FACES_OF_EDGE = [{f for f, cycle in enumerate(_FACES) if c in cycle and c + _STEP[a] in cycle} for c, a in _EDGES]


def _contours(case: int) -> list[list[int]]:
    """The closed loops of cut edges on the cube's surface when the corners in the bit set `case` are inside."""
    inside = [bool(case >> corner & 1) for corner in range(8)]
    follow: dict[int, int] = {}
    for cycle in _FACES:
        for i in range(4):
            if inside[cycle[i]] and not inside[cycle[i - 1]]:  # a run of inside corners begins: find its end
                end = next(j for j in range(i, i + 4) if not inside[cycle[(j + 1) % 4]])
                entry = _EDGE_OF[frozenset((cycle[i - 1], cycle[i]))]
                follow[entry] = _EDGE_OF[frozenset((cycle[end % 4], cycle[(end + 1) % 4]))]
    loops = []
    while follow:
        loop = [next(iter(follow))]
        while (successor := follow.pop(loop[-1])) != loop[0]:
            loop.append(successor)
        loops.append(loop)
    return loops


def _triangulate(loop: list[int]) -> list[tuple[int, int, int]] | None:
    """Triangles of a loop without a diagonal in a cube face, where a neighbour's could coincide with it."""
    if len(loop) == 3:
        return [(loop[0], loop[1], loop[2])]
    for i, tip in enumerate(loop):
        before, after = loop[i - 1], loop[(i + 1) % len(loop)]
        if not _FACES_OF_EDGE[before] & _FACES_OF_EDGE[after]:
            rest = _triangulate(loop[:i] + loop[i + 1 :])
            if rest is not None:
                return [(before, tip, after), *rest]
    return None


def _all_cases() -> tuple[np.ndarray, np.ndarray]:
    table = []
    for case in range(256):
        triangles: list[tuple[int, int, int]] = []
        for loop in _contours(case):
            pieces = _triangulate(loop)
            assert pieces is not None, f"case {case} has no triangulation"
            triangles += pieces
        table.append(triangles)
    counts = np.array([len(triangles) for triangles in table])
    padded = np.zeros((256, counts.max(), 3), np.int64)
    for case, triangles in enumerate(table):
        padded[case, : len(triangles)] = np.array(triangles).reshape(-1, 3)
    return counts, padded


_NUM_TRIANGLES, _TRIANGLES = _all_cases()
