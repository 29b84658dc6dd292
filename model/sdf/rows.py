"""From bricks, with a distance and a side at every voxel, to the rows of a sparse SDF."""

import numpy as np
from jaxtyping import Float, Int

from ..bricks import BRICK_SIZE
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Cells, Flags, Floats, Ints
from .distance import Bricks, find_voxel, sums_before, voxel_at

wp.set_module_options(QUICK_TO_COMPILE)


def band_rows(
    bricks: Bricks, inside: wp.array, *, level: float, truncation: float
) -> tuple[Int[np.ndarray, "num_voxels 3"], Float[np.ndarray, " num_voxels"]]:
    """The voxels of the band, int32, brick by brick, each in C order, and what the field is there, float32.

    That is signed distance / truncation at level 0, else (distance - level) / truncation.
    """
    device, num_lines = bricks.device, len(bricks) * BRICK_SIZE**2
    counts = wp.empty(num_lines, dtype=wp.int32, device=device)
    wp.launch(_count_rows, num_lines, inputs=[bricks.distance, counts], device=device)
    num_rows, first_row = sums_before(counts)
    coords = wp.empty(num_rows, dtype=wp.vec3i, device=device)
    sdf = wp.empty(num_rows, dtype=wp.float32, device=device)
    values = [bricks.coords, bricks.distance, inside, float(level), float(truncation)]
    wp.launch(_write_rows, num_lines, inputs=[*values, first_row, coords, sdf], device=device)
    return coords.numpy(), sdf.numpy()


def bad_flip_ratio(bricks: Bricks, inside: wp.array) -> float:
    """Share of the sign changes between face neighbours whose surface is farther than both could allow.

    A surface between two neighbours has |d_i| + |d_j| <= 1 voxel.
    """
    flips = wp.zeros(2, dtype=wp.int32, device=bricks.device)
    inputs = [bricks.coords, bricks.slots, bricks.resolution // 8, bricks.distance, inside, flips]
    wp.launch(_count_flips, len(bricks) * 64, inputs=inputs, device=bricks.device)
    all_flips, bad = (int(count) for count in flips.numpy())
    return bad / all_flips if all_flips else 0.0


@wp.kernel
def _count_rows(distance: Floats, counts: Ints) -> None:
    """How many voxels of a line are in the band."""
    line = wp.tid()
    found = int(0)
    for i in range(line * 8, line * 8 + 8):
        if distance[i] < wp.inf:
            found += 1
    counts[line] = found


@wp.kernel
def _write_rows(
    bricks: Cells,
    distance: Floats,
    inside: Flags,
    level: float,
    truncation: float,
    first_row: Ints,
    coords: Cells,
    sdf: Floats,
) -> None:
    line = wp.tid()
    row = first_row[line]
    for z in range(8):
        i = line * 8 + z
        near = distance[i]
        if near < wp.inf:
            value = near - level
            if level == 0.0 and inside[i] == wp.int8(1):
                value = -near
            coords[row] = voxel_at(i, bricks)
            sdf[row] = value / truncation
            row += 1


@wp.kernel
def _count_flips(bricks: Cells, slots: Ints, bricks_a_side: int, distance: Floats, inside: Flags, flips: Ints) -> None:
    """Along one line of 8 voxels, compared with their next neighbours on all axes: sign changes, and bad ones."""
    line = wp.tid()
    brick = bricks[line // 64]
    place = wp.vec3i(line // 8 % 8, line % 8, 0)  # in the brick
    found = int(0)
    bad = int(0)
    for z in range(8):
        place[2] = z
        i = line * 8 + z
        for axis in range(3):
            j = i + (64 >> 3 * axis)
            if place[axis] == 7:  # in the next brick
                there = brick * 8 + place
                there[axis] = there[axis] + 1
                j = find_voxel(there, bricks_a_side, slots)
            if j >= 0 and inside[i] != inside[wp.max(j, 0)]:
                found += 1
                if distance[i] + distance[j] > 1.0001:
                    bad += 1
    if found > 0:
        wp.atomic_add(flips, 0, found)
    if bad > 0:
        wp.atomic_add(flips, 1, bad)
