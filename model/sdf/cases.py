"""The triangles of marching cubes for each of the 256 ways in which the corners of a cell can be inside or outside.

They are generated, not typed in. On every cube face the crossings of one run of inside corners are joined; the rule
sees nothing but the face, so the two cells that share it agree and a surface can only end where voxels end.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

CORNERS = np.array(list(product((0, 1), repeat=3)))  # corner 4 x + 2 y + z
# A cut edge by its lower corner and its axis.
EDGES = np.array([(corner, axis) for corner in range(8) for axis in range(3) if CORNERS[corner][axis] == 0])
_STEP = (4, 2, 1)  # from a corner to its neighbour along x, y, z


class Cases(NamedTuple):
    """Case number: the sum of 2**corner over the corners inside."""

    num_triangles: Int[np.ndarray, " 256"]
    triangles: Int[np.ndarray, "256 most 3"]  # rows of EDGES, counter-clockwise seen from outside; padded with 0


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
_EDGE_OF = {frozenset((int(c), int(c) + _STEP[a])): i for i, (c, a) in enumerate(EDGES)}
_FACES_OF_EDGE = [{f for f, cycle in enumerate(_FACES) if c in cycle and c + _STEP[a] in cycle} for c, a in EDGES]


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


def _all_cases() -> Cases:
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
    return Cases(counts, padded)


CASES = _all_cases()
