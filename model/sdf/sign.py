"""Inside or outside, by the generalised winding number: the only criterion that also holds on open meshes.

Its value is found the short way. Caps over all holes make the mesh a closed one, whose winding number is a whole number
that counting crossings along grid lines gives for all voxels at once; the caps' own winding number is then taken off
again. The costly solid angles are so needed for the caps only, and on a closed mesh not at all.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..sparse_sdf import Vertices
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Flags, Floats, Ints
from .crossings import count_crossings
from .distance import Bricks, split_long
from .edges import connected_parts
from .insides import decide_insides

wp.set_module_options(QUICK_TO_COMPILE)

# Every query is this far (in voxels) from its voxel's centre: centres often lie exactly on faces, edges and caps.
_NUDGE = wp.vec3d(1.37e-5, 2.11e-5, 1.73e-5)


class WoundSurface(NamedTuple):
    """Surfaces whose winding numbers tell what is inside; their triangles are short ones (see short_triangles)."""

    corners: wp.array  # vec3d, three for each triangle, on the device, in voxels
    caps: Float[np.ndarray, "num_caps 3 3"]  # over the holes, see cap_holes; in voxels
    cavities: wp.array | None = None  # like corners, closed: where any of them is, w is one less, towards `sign`
    sign: int = 1  # of w in a body


def brick_insides(surface: WoundSurface, bricks: Bricks) -> wp.array:
    """Whether |w| > 0.5, as int8, 512 for every brick. |w| makes inside-out meshes right."""
    corners, caps, taken, sign = surface
    device = bricks.device
    cavities = None
    if taken is not None:
        cavities = count_crossings([taken], bricks, nudge=_NUDGE)
        if cavities is None:  # then each for itself
            corners = wp.array(np.concatenate([corners.numpy(), taken.numpy()]), dtype=wp.vec3d, device=device)
    whole, boundary = None, caps[:, :2]  # in the direction of the caps, against that of the triangles
    if len(caps) <= 2 * (len(corners) // 3):  # more are those of loose triangles, and no better than these
        caps = split_long(caps)  # a long sliver is near many voxels, and near ones cost most
        surfaces = [corners, wp.array(caps.reshape(-1, 3), dtype=wp.vec3d, device=device)] if len(caps) else [corners]
        whole = count_crossings(surfaces, bricks, nudge=_NUDGE)
    base = wp.zeros(len(bricks.distance), dtype=wp.int32, device=device) if whole is None else whole
    if cavities is not None:
        # w is the surfaces' less the boundary's; without `whole` it is negative, see below
        way = -sign if whole is None else sign
        wp.launch(_take_away, len(base), inputs=[cavities, way, base], device=device)
    if whole is None:
        return decide_insides(corners.numpy().reshape(-1, 3, 3), boundary[:, ::-1], base, bricks, nudge=_NUDGE)
    if len(caps):
        return decide_insides(caps, boundary, whole, bricks, nudge=_NUDGE)
    inside = wp.empty(len(whole), dtype=wp.int8, device=device)
    wp.launch(_differs_from_zero, len(whole), inputs=[whole, inside], device=device)
    return inside


@wp.kernel
def _take_away(cavities: Ints, sign: int, whole: Ints) -> None:
    i = wp.tid()
    if cavities[i] != 0:
        whole[i] = whole[i] - sign


def insides_of_shell(bricks: Bricks, level: float) -> wp.array:
    """Whether a voxel is nearer than `level` to the surface, as int8, 512 for every brick."""
    inside = wp.empty(len(bricks.distance), dtype=wp.int8, device=bricks.device)
    wp.launch(_is_nearer, len(inside), inputs=[bricks.distance, float(level), inside], device=bricks.device)
    return inside


@wp.kernel
def _is_nearer(distance: Floats, level: float, inside: Flags) -> None:
    i = wp.tid()
    inside[i] = wp.int8(wp.where(distance[i] < level, 1, 0))


@wp.kernel
def _differs_from_zero(whole: Ints, inside: Flags) -> None:
    i = wp.tid()
    inside[i] = wp.int8(wp.where(whole[i] != 0, 1, 0))


def cap_holes(vertices: Vertices, boundary: Int[np.ndarray, "num_edges 2"]) -> Float[np.ndarray, "num_edges 3 3"]:
    """Triangles that make the mesh closed: each loop of its boundary (see find_edges), joined to its mean vertex.

    Corners 0 and 1 are those of the edge.
    """
    if not len(boundary):
        return np.zeros((0, 3, 3))
    from_, to = boundary.T
    loop = _loops(from_, to)
    sums = np.stack([np.bincount(loop, weights=vertices[from_, axis]) for axis in range(3)], 1)
    apex = sums[loop] / np.bincount(loop)[loop, None]
    return np.stack([vertices[from_], vertices[to], apex], 1)


def _loops(from_: Int[np.ndarray, " num_edges"], to: Int[np.ndarray, " num_edges"]) -> Int[np.ndarray, " num_edges"]:
    """For each edge the number of its loop, where every vertex is left as often as it is reached."""
    vertex, start, times = np.unique(from_, return_inverse=True, return_counts=True)
    part = connected_parts(start, np.searchsorted(vertex, to), len(vertex))
    crossed = np.bincount(part, weights=times > 1) > 0  # the others are single loops
    loop = part[start]
    walked = np.flatnonzero(crossed[loop])
    loop[walked] = len(vertex) + _walk(from_[walked], to[walked])
    return np.unique(loop, return_inverse=True)[1]


def _walk(from_: Int[np.ndarray, " num_edges"], to: Int[np.ndarray, " num_edges"]) -> Int[np.ndarray, " num_edges"]:
    """The loops of edges that meet at vertices.

    Small loops make small caps, which only the voxels near them have to look at; so a walk that comes back to a vertex
    has closed a loop, however many others go through that vertex.
    """
    leaving: dict[int, list[int]] = {}
    for edge, vertex in enumerate(from_.tolist()):
        leaving.setdefault(vertex, []).append(edge)
    ends, loop = to.tolist(), np.empty(len(from_), np.int64)
    num_loops = 0

    def closes(edge: int) -> tuple[int, int]:
        """How soon, after this edge or the next, and how short a loop would be closed."""
        end = ends[edge]
        if end in place:
            return 2, place[end]
        return max(((1, place[ends[then]]) for then in leaving[end] if ends[then] in place), default=(0, 0))

    for first in list(leaving):
        vertex, path = first, list[int]()  # edges
        place = {vertex: 0}  # of the vertices on the path
        while path or leaving[vertex]:
            choice = max(leaving[vertex], key=closes) if len(leaving[vertex]) > 1 else leaving[vertex][0]
            leaving[vertex].remove(choice)
            path.append(choice)
            vertex = ends[path[-1]]
            if vertex in place:
                begin = place[vertex]
                for edge in path[begin:]:
                    loop[edge] = num_loops
                    del place[ends[edge]]
                del path[begin:]
                num_loops += 1
            place[vertex] = len(path)
    return loop
