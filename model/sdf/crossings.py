"""Winding numbers of a closed mesh at all voxels of some bricks, by counting crossings along the grid's z lines.

Going up a line, passing a face from its back to its front is a step out (-1), from front to back a step in (+1).
"""

from ..bricks import BRICK_SIZE, BRICK_VOXELS
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Ints, Points
from .distance import Bricks, find_voxel

# No fused multiply-add: two faces must agree about their edge to the bit.
wp.set_module_options({**QUICK_TO_COMPILE, "fuse_fp": False})


def count_crossings(surfaces: list[wp.array], bricks: Bricks, *, nudge: wp.vec3d) -> wp.array | None:
    """Whole winding numbers at voxel centres plus `nudge`, int32, 512 for every brick.

    The surfaces, corners as vec3d in voxels, are closed together. None where a line does not end outside as it began,
    which rounding can cause at a line that meets a vertex.
    """
    resolution, device = bricks.resolution, bricks.device
    lines = wp.zeros(resolution**2, dtype=wp.int32, device=device)
    below = wp.zeros(len(bricks) * BRICK_SIZE**2, dtype=wp.int32, device=device)
    winding = wp.zeros(len(bricks) * BRICK_VOXELS, dtype=wp.int32, device=device)
    offset = nudge + wp.vec3d(0.5, 0.5, 0.5)
    for corners in surfaces:
        inputs = [corners, 2, resolution, offset, bricks.slots, winding, lines, below]
        wp.launch(_cross, (1, len(corners) // 3), inputs=inputs, device=device)
    ends_inside = wp.zeros(1, dtype=wp.int32, device=device)
    wp.launch(_look_for_others, len(lines), inputs=[lines, ends_inside], device=device)
    if ends_inside.numpy()[0]:
        return None
    wp.launch(_climb, len(below), inputs=[below, winding], device=device)
    return winding


def count_steps(corners: wp.array, bricks: Bricks, *, nudge: wp.vec3d) -> wp.array:
    """How an open surface's winding number changes by crossing it on the way to a voxel from the one before it.

    Between voxel centres plus `nudge`, along all three axes, see step_along; int32, 512 for every brick.
    """
    steps = wp.zeros(len(bricks) * BRICK_VOXELS, dtype=wp.int32, device=bricks.device)
    offset = nudge + wp.vec3d(0.5, 0.5, 0.5)
    inputs = [corners, 0, bricks.resolution, offset, bricks.slots, steps, None, None]
    wp.launch(_cross, (3, len(corners) // 3), inputs=inputs, device=bricks.device)
    return steps


@wp.func
def step_along(axis: int, steps: int) -> int:
    """One of three numbers, each less than 512 in size, that are kept as their sum times 1, 1024 and 1024^2."""
    rest = steps
    digit = int(0)
    for _i in range(axis + 1):
        digit = ((rest + 512) & 1023) - 512
        rest = (rest - digit) >> 10
    return digit


@wp.func
def _comes_first(a: wp.vec3d, b: wp.vec3d) -> bool:
    if a[0] != b[0]:
        return a[0] < b[0]
    if a[1] != b[1]:
        return a[1] < b[1]
    return a[2] < b[2]


@wp.func
def _area(a: wp.vec3d, b: wp.vec3d, x: wp.float64, y: wp.float64) -> wp.float64:
    """Twice the signed area of a, b, (x, y), with the same rounding whichever of a and b is named first."""
    if _comes_first(a, b):
        return (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
    return -((a[0] - b[0]) * (y - b[1]) - (a[1] - b[1]) * (x - b[0]))


@wp.func
def _is_left(a: wp.vec3d, b: wp.vec3d, area: wp.float64) -> bool:
    """Side of an edge; a line that meets it exactly is on opposite sides for the two faces of the edge."""
    if area == wp.float64(0.0):
        return _comes_first(a, b)
    return area > wp.float64(0.0)


@wp.func
def _first_line(lowest: wp.float64, offset: wp.float64) -> int:
    return wp.max(int(wp.ceil(lowest - offset)), 0)


@wp.func
def _last_line(highest: wp.float64, offset: wp.float64, resolution: int) -> int:
    return wp.min(int(wp.floor(highest - offset)), resolution - 1)


@wp.func
def _crossing(a: wp.vec3d, b: wp.vec3d, c: wp.vec3d, x: wp.float64, y: wp.float64) -> tuple[int, wp.float64]:
    """The step in and the height at which the line meets the triangle; step 0 where it passes by."""
    ab = _area(a, b, x, y)
    bc = _area(b, c, x, y)
    ca = _area(c, a, x, y)
    left = _is_left(a, b, ab)
    step = int(0)
    if left == _is_left(b, c, bc) and left == _is_left(c, a, ca):
        step = wp.where(left, -1, 1)
    total = ab + bc + ca
    height = a[2]
    if total != wp.float64(0.0):
        height = (bc * a[2] + ca * b[2] + ab * c[2]) / total
    return step, height


@wp.func
def _rolled(v: wp.vec3d, axis: int) -> wp.vec3d:
    """The components in cyclic order, `axis` last."""
    return wp.vec3d(v[(axis + 1) % 3], v[(axis + 2) % 3], v[axis])


@wp.kernel
def _cross(
    corners: Points, first: int, resolution: int, offset: wp.vec3d, slots: Ints, steps: Ints, lines: Ints, below: Ints
) -> None:
    """Adds each crossing to the voxel after it on its line along an axis from `first` on: see step_along.

    Given `lines` and `below`, also to its line and to all bricks of the line above that voxel's; this is for z alone.
    """
    number, t = wp.tid()
    axis = first + number
    a = _rolled(corners[t * 3], axis)
    b = _rolled(corners[t * 3 + 1], axis)
    c = _rolled(corners[t * 3 + 2], axis)
    start = _rolled(offset, axis)
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    bricks = resolution // 8
    for i in range(_first_line(low[0], start[0]), _last_line(high[0], start[0], resolution) + 1):
        for j in range(_first_line(low[1], start[1]), _last_line(high[1], start[1], resolution) + 1):
            step, height = _crossing(a, b, c, wp.float64(i) + start[0], wp.float64(j) + start[1])
            if step != 0:
                above = wp.clamp(int(wp.ceil(height - start[2])), 0, resolution)
                voxel = wp.vec3i(0, 0, 0)
                voxel[(axis + 1) % 3] = i
                voxel[(axis + 2) % 3] = j
                voxel[axis] = above
                place = find_voxel(voxel, bricks, slots)
                if place >= 0:
                    wp.atomic_add(steps, place, step << (10 * number))
                if lines:
                    wp.atomic_add(lines, i * resolution + j, step)
                    for k in range(above // 8 + 1, bricks):
                        slot = slots[((i // 8) * bricks + j // 8) * bricks + k]
                        if slot >= 0:
                            wp.atomic_add(below, slot * 64 + i % 8 * 8 + j % 8, step)


@wp.kernel
def _look_for_others(lines: Ints, others: Ints) -> None:
    """Whether any is not zero."""
    if lines[wp.tid()] != 0:
        others[0] = 1


@wp.kernel
def _climb(below: Ints, winding: Ints) -> None:
    """Steps at the voxels of a line of a brick to winding numbers, in place."""
    line = wp.tid()
    inside = int(below[line])
    for i in range(line * 8, line * 8 + 8):
        inside += winding[i]
        winding[i] = inside
