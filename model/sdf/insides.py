"""Which voxels are inside, where the winding number is a whole number less that of an open surface.

The winding number of a surface is smooth up to whole numbers: crossing the surface changes it by one, and apart from
that it changes like the field of a current around the surface's boundary (Biot and Savart). So blocks of voxels away
from the boundary need one walk through the surface for the winding number at one voxel, one through the boundary for
how it changes from there, to second order and with a bound on the rest, and the crossings between neighbours.
Blocks of half the size are asked where this leaves voxels open, at last the voxels themselves. Where that would take
too long, as it does where a mesh has boundary everywhere, a block's one winding number and the crossings have to do.
"""

import numpy as np
from jaxtyping import Float

from ..bricks import BRICK_SIZE
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Cells, Flags, Ints, Seen
from .crossings import count_steps, step_along
from .distance import Bricks, voxel_at
from .winding import Tree, edge_tree, next_node, seen_from, seen_within, triangle_tree, winding_number

wp.set_module_options(QUICK_TO_COMPILE)

_GROUP_ERROR = 1e-3  # largest bound for which the walk takes a group of edges by its sums; all bounds are added up
# Largest error that one group of triangles may add to a winding number, which then is within _MARGIN: 0.007 is the most
# that was measured in 4,800 places. What is nearer to a half than that is asked precisely, voxel by voxel.
_COARSE, _MARGIN, _PRECISE = 5e-3, 0.01, 1e-5
# Nodes and triangles visited in all, and for each voxel besides: about 10 s at R = 128. With more, blocks are not
# halved any further, and nothing is asked precisely.
_MOST_VISITS, _MOST_VISITS_A_VOXEL = 3e8, 300.0
_PROBES = 64  # blocks at which it is seen what a winding number costs
_OPEN = 2  # what `inside` holds before it is decided


@wp.struct
class Change:
    """How 4 pi times a winding number changes by a step e from a block's middle: gradient.e + e.curvature.e / 2."""

    gradient: wp.vec3
    curvature: wp.mat33
    error: float  # of the winding number, at the block's farthest voxel; 1 or more where there is no bound
    visits: int  # nodes and edges visited


def decide_insides(
    triangles: Float[np.ndarray, "num_faces 3 3"],
    boundary: Float[np.ndarray, "num_edges 2 3"],
    whole: wp.array,
    bricks: Bricks,
    *,
    nudge: wp.vec3d,
) -> wp.array:
    """Whether |whole - w| > 0.5, int8, 512 for every brick; w is the winding number at the voxel's centre plus nudge.

    `whole` holds an integer for every voxel; triangles and their boundary, directed as they are, in voxels.
    """
    device = bricks.device
    inside = wp.full(len(whole), _OPEN, dtype=wp.int8, device=device)
    steps = count_steps(wp.array(triangles.reshape(-1, 3), dtype=wp.vec3d, device=device), bricks, nudge=nudge)
    surface, around = triangle_tree(triangles, device=device), edge_tree(boundary, device=device)
    coarse, precise = seen_within(surface, _COARSE), seen_within(surface, _PRECISE)
    visits = wp.zeros(1, dtype=wp.float64, device=device)

    def decide(side: int, blocks: int, named: wp.array | None, *, octants: int, at_once: int) -> wp.array:
        """The blocks that stay open."""
        reach = 0.5 * (side - 1) * 3**0.5
        left = wp.empty(blocks, dtype=wp.int32, device=device)
        num_left = wp.zeros(1, dtype=wp.int32, device=device)
        fields = [bricks.coords, nudge, surface, coarse, precise, around, seen_at(around, reach), steps, whole]
        inputs = [side, reach, named, octants, at_once, *fields, inside, visits, num_left, left]
        wp.launch(_decide_blocks, blocks, inputs=inputs, device=device)
        return left[: int(num_left.numpy()[0])]

    most_visits = _MOST_VISITS + _MOST_VISITS_A_VOXEL * len(whole)
    side, blocks, left = BRICK_SIZE, len(bricks), None
    while side and blocks:
        left = decide(side, blocks, left, octants=8, at_once=0)
        blocks = 8 * len(left)
        a_query = _visits_a_query(left, bricks, surface, coarse, nudge) if blocks else 0.0
        if blocks and float(visits.numpy()[0]) + blocks * a_query > most_visits:
            decide(side, len(left), left, octants=1, at_once=1)
            break
        side //= 2
    return inside


def _visits_a_query(blocks: wp.array, bricks: Bricks, surface: Tree, seen: wp.array, nudge: wp.vec3d) -> float:
    """How many nodes and triangles a winding number takes, on average over some blocks."""
    visits = wp.zeros(1, dtype=wp.float64, device=bricks.device)
    probes = min(len(blocks), _PROBES)
    inputs = [blocks, probes, bricks.coords, nudge, surface, seen, visits]
    wp.launch(_probe, probes, inputs=inputs, device=bricks.device)
    return float(visits.numpy()[0]) / probes


def seen_at(boundary: Tree, reach: float) -> wp.array:
    """From where groups of edges count together, leaving out at most _GROUP_ERROR up to `reach` voxels from a point."""
    radius, length, lengths = boundary.shape.numpy().T
    beyond = 3 * lengths * radius * (radius + reach)
    error = reach * (reach**2 * length + beyond) / (4 * np.pi * _GROUP_ERROR)  # at a gap of one voxel
    return seen_from(boundary, reach + error**0.25)


@wp.func
def _edge_change(change: Change, a: wp.vec3, b: wp.vec3, reach: float) -> Change:
    """Adds an edge from a to b, seen from the middle of a block whose voxels are up to `reach` away.

    The gradient is a x b s, s a function of lengths; moving by e changes a x b across e only, s by slope.e. An nth
    derivative of the solid angle is at most n! times the integral of 1 / r^(n+1) along the edge.
    """
    la = wp.length(a)
    lb = wp.length(b)
    ab = wp.dot(a, b)
    normal = wp.cross(a, b)
    length = wp.length(b - a)
    along = wp.clamp(-wp.dot(a, b - a) / wp.max(length * length, 1.0e-30), 0.0, 1.0)
    gap = wp.length(a + along * (b - a))
    if gap <= reach:
        change.error += 1.0
        return change
    product = la * lb
    opening = product + ab
    if ab < 0.0:  # the same without cancellation
        opening = wp.dot(normal, normal) / (product - ab)
    if opening <= 0.0:
        change.error += 1.0
        return change
    s = (la + lb) / (product * opening)
    of_product = -(lb / la) * a - (la / lb) * b
    slope = -(a / la + b / lb) / (product * opening) - s * (of_product / product + (of_product - a - b) / opening)
    change.gradient += s * normal
    change.curvature += wp.outer(normal, slope)
    integral = wp.min(length / gap, 0.5 * wp.pi) / (gap * gap * gap)
    change.error += reach * reach * reach * integral / ((1.0 - reach / gap) * 4.0 * wp.pi)
    return change


@wp.func
def _group_bound(shape: wp.vec3, far: float, reach: float) -> float:
    """Bound on what a group's sum and moment leave out over the block, see seen_at."""
    gap = far - shape[0] - reach
    beyond = 3.0 * shape[2] * shape[0] * (shape[0] + reach)
    return reach * (reach * reach * shape[1] + beyond) / (gap * gap * gap * gap * 4.0 * wp.pi)


@wp.func
def _group_change(change: Change, to_group: wp.vec3, far: float, current: wp.vec3, moment: wp.mat33) -> Change:
    """Adds the field of edges that sum up to `current`, to first order of their places in the group."""
    direction = to_group / far
    normal = wp.cross(to_group, current)
    turned = wp.vec3(moment[1, 2] - moment[2, 1], moment[2, 0] - moment[0, 2], moment[0, 1] - moment[1, 0])
    first = turned - 3.0 * wp.cross(direction, wp.transpose(moment) * direction)
    change.gradient += (normal + first) / (far * far * far)
    change.curvature += wp.outer(normal, 3.0 * to_group / (far * far * far * far * far))
    return change


@wp.func
def _change_around(q: wp.vec3d, boundary: Tree, seen: Seen, reach: float) -> Change:
    """How the winding number changes around q; not finished where the error's bound passes 0.5."""
    change = Change()
    q32 = wp.vec3(q)
    node = int(0)
    walking = int(1)
    while walking == 1:
        change.visits += 1
        group = seen[node]
        to_group = wp.vec3(group[0], group[1], group[2]) - q32
        squared = wp.dot(to_group, to_group)
        if squared >= group[3]:
            far = wp.sqrt(squared)
            change = _group_change(change, to_group, far, boundary.sums[node], boundary.moments[node])
            change.error += _group_bound(boundary.shape[node], far, reach)
            node = next_node(node)
        elif node < boundary.num_inner:
            node = 2 * node + 1
        else:
            leaf = node - boundary.num_inner
            change.visits += boundary.leaf_starts[leaf + 1] - boundary.leaf_starts[leaf]
            for t in range(boundary.leaf_starts[leaf], boundary.leaf_starts[leaf + 1]):
                a = wp.vec3(boundary.corners[t * 2] - q)
                b = wp.vec3(boundary.corners[t * 2 + 1] - q)
                change = _edge_change(change, a, b, reach)
            node = next_node(node)
        walking = wp.where(node == 0 or change.error >= 0.5, 0, 1)
    return change


@wp.func
def _at(change: Change, e: wp.vec3) -> float:
    return (wp.dot(change.gradient, e) + 0.5 * wp.dot(e, change.curvature * e)) / (4.0 * wp.pi)


@wp.func
def _decide_voxels(
    first: int, side: int, winding: float, change: Change, steps: Ints, whole: Ints, inside: Flags
) -> int:
    """Decides what can be decided, given the winding number at the voxel after the middle; how many stay open."""
    half = side // 2
    middle = 0.5 * float(side - 1)
    # Steps are summed up from the block's first voxel: along x, from there along y, from there along z.
    to_middle = int(0)
    for i in range(1, half + 1):
        to_middle += step_along(0, steps[first + i * 64])
        to_middle += step_along(1, steps[first + half * 64 + i * 8])
        to_middle += step_along(2, steps[first + half * 64 + half * 8 + i])
    start = winding - _at(change, wp.vec3(0.5)) - float(to_middle)
    num_open = int(0)
    along_x = int(0)
    for x in range(side):
        if x > 0:
            along_x += step_along(0, steps[first + x * 64])
        along_y = along_x
        for y in range(side):
            if y > 0:
                along_y += step_along(1, steps[first + x * 64 + y * 8])
            along_z = along_y
            for z in range(side):
                i = first + x * 64 + y * 8 + z
                if z > 0:
                    along_z += step_along(2, steps[i])
                here = start + float(along_z) + _at(change, wp.vec3(float(x), float(y), float(z)) - wp.vec3(middle))
                beyond = wp.abs(float(whole[i]) - here) - 0.5
                if inside[i] == wp.int8(_OPEN):
                    if wp.abs(beyond) > change.error:
                        inside[i] = wp.int8(wp.where(beyond > 0.0, 1, 0))
                    else:
                        num_open += 1
    return num_open


@wp.func
def _num_open(inside: Flags, first: int, side: int) -> int:
    found = int(0)
    for x in range(side):
        for y in range(side):
            for z in range(side):
                if inside[first + x * 64 + y * 8 + z] == wp.int8(_OPEN):
                    found += 1
    return found


@wp.kernel
def _probe(
    blocks: Ints, probes: int, bricks: Cells, nudge: wp.vec3d, surface: Tree, seen: Seen, visits: wp.array[wp.float64]
) -> None:
    block = int(wp.int64(wp.tid()) * wp.int64(blocks.shape[0]) / wp.int64(probes))
    q = wp.vec3d(voxel_at(blocks[block], bricks)) + nudge
    _winding, taken = winding_number(q, surface, seen)
    wp.atomic_add(visits, 0, wp.float64(taken))


@wp.kernel
def _decide_blocks(
    side: int,
    reach: float,
    named: Ints,
    octants: int,
    at_once: int,
    bricks: Cells,
    nudge: wp.vec3d,
    surface: Tree,
    coarse: Seen,
    precise: Seen,
    boundary: Tree,
    boundary_seen: Seen,
    steps: Ints,
    whole: Ints,
    inside: Flags,
    visits: wp.array[wp.float64],
    num_left: Ints,
    left: Ints,
) -> None:
    """Decides what can be decided in a block of `side` voxels a side, and lists it where voxels stay open.

    Blocks are named by their first voxel. They are the bricks if none is named, else the 8 octants of those named, or
    these themselves. `at_once` decides all voxels, with an error or not.
    """
    block = wp.tid()
    first = block * 512
    if named:
        first = named[block // octants]
        if octants == 8:
            first += (block // 4 % 2 * 64 + block // 2 % 2 * 8 + block % 2) * side
    if _num_open(inside, first, side) == 0:
        return
    half = wp.float64(side // 2) + wp.float64(0.5)
    q = wp.vec3d(voxel_at(first, bricks)) + wp.vec3d(half, half, half) + nudge  # of the voxel after the middle
    if side == 1:
        winding, taken = winding_number(q, surface, coarse)
        if wp.abs(wp.abs(float(whole[first]) - winding) - 0.5) <= _MARGIN:
            winding, more = winding_number(q, surface, precise)
            taken += more
        wp.atomic_add(visits, 0, wp.float64(taken))
        inside[first] = wp.int8(wp.where(wp.abs(float(whole[first]) - winding) > 0.5, 1, 0))
        return
    middle = q - wp.vec3d(wp.float64(0.5), wp.float64(0.5), wp.float64(0.5))
    change = _change_around(middle, boundary, boundary_seen, reach)
    # the expansion also leads to q, to where it errs less, being of third order
    change.error = change.error * (1.0 + 1.0 / (float(side - 1) * float(side - 1) * float(side - 1))) + _MARGIN
    num_open = int(1)
    num_visits = change.visits
    if at_once == 1:
        if change.error >= 0.5:  # there was no end to it
            change = Change()
        change.error = -1.0
    if change.error < 0.5:
        winding, taken = winding_number(q, surface, coarse)
        num_visits += taken
        num_open = _decide_voxels(first, side, winding, change, steps, whole, inside)
    wp.atomic_add(visits, 0, wp.float64(num_visits))
    if num_open > 0:
        left[wp.atomic_add(num_left, 0, 1)] = first
