"""Winding numbers of a closed mesh at all voxels of some bricks, by counting crossings along the grid's z lines.

Going up a line, passing a face from its back to its front is a step out (-1), from front to back a step in (+1).
"""

import numpy as np
import warp as wp
from jaxtyping import Float, Int

from model.sdf.distance import BRICK_SIZE, BRICK_VOXELS

wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile


def count_crossings(
    triangles: Float[np.ndarray, "num_faces 3 3"],
    brick_coords: Int[np.ndarray, "num_bricks 3"],
    *,
    resolution: int,
    nudge: Float[np.ndarray, "3"],
    device: str,
) -> Int[np.ndarray, "num_bricks 8 8 8"] | None:
    """Whole winding numbers at voxel centres plus `nudge`; triangles in voxels.

    None where a line does not end outside as it began, which rounding can cause at a line that meets a vertex.
    """
    corners = wp.array(triangles.reshape(-1, 3), dtype=wp.vec3d, device=device)
    grid = [corners, resolution, wp.vec3d(*(nudge + 0.5))]
    counts = wp.zeros(len(triangles), dtype=wp.int32, device=device)
    wp.launch(_count, len(triangles), inputs=[*grid, counts], device=device)
    ends = counts.numpy().cumsum(dtype=np.int64)
    starts = wp.array(ends - counts.numpy(), dtype=wp.int64, device=device)
    line_keys = wp.zeros(int(ends[-1]), dtype=wp.int64, device=device)
    line_steps = wp.zeros(int(ends[-1]), dtype=wp.int32, device=device)
    wp.launch(_record, len(triangles), inputs=[*grid, starts, line_keys, line_steps], device=device)

    # A crossing's key is its line and the first voxel above it.
    order = line_keys.numpy().argsort(kind="stable")
    keys, steps = line_keys.numpy()[order], line_steps.numpy()[order]
    height = resolution + 1
    if np.bincount(keys // height, weights=steps, minlength=1).any():
        return None

    table = np.full((resolution // BRICK_SIZE,) * 2 + (resolution // BRICK_SIZE + 1,), -1)
    table[tuple(brick_coords.T)] = np.arange(len(brick_coords))
    x, y, z = keys // height // resolution, keys // height % resolution, keys % height
    slot = table[x // BRICK_SIZE, y // BRICK_SIZE, z // BRICK_SIZE]
    voxel = ((slot * BRICK_SIZE + x % BRICK_SIZE) * BRICK_SIZE + y % BRICK_SIZE) * BRICK_SIZE + z % BRICK_SIZE
    near = slot >= 0
    within = np.bincount(voxel[near], weights=steps[near], minlength=len(brick_coords) * BRICK_VOXELS)
    within = within.astype(np.int32).reshape(-1, BRICK_SIZE, BRICK_SIZE, BRICK_SIZE).cumsum(3, dtype=np.int32)

    # What a brick's lines have crossed below it; each line sums to 0, so earlier lines add nothing.
    side = np.arange(BRICK_SIZE)
    lines = (brick_coords[:, 0, None, None].astype(np.int64) * BRICK_SIZE + side[:, None]) * resolution
    lines = lines + brick_coords[:, 1, None, None] * BRICK_SIZE + side
    bottom = lines * height + brick_coords[:, 2, None, None] * BRICK_SIZE
    crossed = np.concatenate([[0], steps.cumsum(dtype=np.int32)])
    return within + crossed[np.searchsorted(keys, bottom)][..., None]


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


@wp.kernel
def _count(corners: wp.array[wp.vec3d], resolution: int, offset: wp.vec3d, counts: wp.array[wp.int32]) -> None:
    t = wp.tid()
    a = corners[t * 3]
    b = corners[t * 3 + 1]
    c = corners[t * 3 + 2]
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    found = int(0)
    for i in range(_first_line(low[0], offset[0]), _last_line(high[0], offset[0], resolution) + 1):
        for j in range(_first_line(low[1], offset[1]), _last_line(high[1], offset[1], resolution) + 1):
            step, _height = _crossing(a, b, c, wp.float64(i) + offset[0], wp.float64(j) + offset[1])
            found += wp.abs(step)
    counts[t] = found


@wp.kernel
def _record(
    corners: wp.array[wp.vec3d],
    resolution: int,
    offset: wp.vec3d,
    starts: wp.array[wp.int64],
    line_keys: wp.array[wp.int64],
    line_steps: wp.array[wp.int32],
) -> None:
    t = wp.tid()
    a = corners[t * 3]
    b = corners[t * 3 + 1]
    c = corners[t * 3 + 2]
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    row = starts[t]
    for i in range(_first_line(low[0], offset[0]), _last_line(high[0], offset[0], resolution) + 1):
        for j in range(_first_line(low[1], offset[1]), _last_line(high[1], offset[1], resolution) + 1):
            step, height = _crossing(a, b, c, wp.float64(i) + offset[0], wp.float64(j) + offset[1])
            if step != 0:
                above = wp.clamp(int(wp.ceil(height - offset[2])), 0, resolution)
                line = wp.int64(i) * wp.int64(resolution) + wp.int64(j)
                line_keys[row] = line * wp.int64(resolution + 1) + wp.int64(above)
                line_steps[row] = step
                row += wp.int64(1)
