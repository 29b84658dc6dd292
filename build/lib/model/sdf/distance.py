"""Unsigned distance to a triangle mesh in a narrow band: triangles are scattered into 8^3 bricks of voxels.

No tree and no search: every triangle visits the bricks near it and lowers the distance of the voxels there. One kernel
source serves CPU and CUDA. Lengths are in voxels: voxel i of an axis has its centre at i + 0.5.
"""

from typing import NamedTuple

import numpy as np
import warp as wp
from jaxtyping import Float, Int

BRICK_SIZE = 8
BRICK_VOXELS = BRICK_SIZE**3

wp.config.log_level = wp.LOG_ERROR  # no banner
wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile

_MAX_EDGE = 4.0 * BRICK_SIZE  # longer triangles are split, so that no thread walks through the whole grid
_BRICK_REACH = 3.5 * 3**0.5  # from a brick's centre to the farthest voxel centre in it
_FLAT = 1e-12  # squared sine below which a triangle is treated as its three edges


class BrickDistances(NamedTuple):
    brick_coords: Int[np.ndarray, "num_bricks 3"]  # int32, in bricks, C order of x, y, z
    distance: Float[np.ndarray, "num_bricks 8 8 8"]  # float32, in voxels; inf where farther than the band


def band_distances(
    triangles: Float[np.ndarray, "num_faces 3 3"], *, resolution: int, band_voxels: float, device: str
) -> BrickDistances:
    """Exact distance of every voxel nearer than `band_voxels` to a triangle, in the bricks that hold such a voxel."""
    bricks_a_side = resolution // BRICK_SIZE
    corners = wp.array(split_long(triangles).reshape(-1, 3), dtype=wp.vec3d, device=device)
    num_triangles = len(corners) // 3
    slots = wp.full(bricks_a_side**3, -1, dtype=wp.int32, device=device)
    grid = [bricks_a_side, float(band_voxels)]
    wp.launch(_mark_bricks, num_triangles, inputs=[corners, *grid, slots], device=device)

    marked = np.flatnonzero(slots.numpy() == 0)
    table = np.full(bricks_a_side**3, -1, np.int32)
    table[marked] = np.arange(len(marked), dtype=np.int32)
    slots = wp.array(table, dtype=wp.int32, device=device)
    squared = wp.full(len(marked) * BRICK_VOXELS, np.inf, dtype=wp.float32, device=device)
    wp.launch(_lower_distances, num_triangles, inputs=[corners, *grid, slots, squared], device=device)

    distance = np.sqrt(squared.numpy()).reshape(-1, BRICK_SIZE, BRICK_SIZE, BRICK_SIZE)
    distance[distance / np.float32(band_voxels) >= 1] = np.inf  # as the stored value rounds
    occupied = np.isfinite(distance).any((1, 2, 3))
    brick_coords = np.stack(np.unravel_index(marked, (bricks_a_side,) * 3), 1).astype(np.int32)
    return BrickDistances(brick_coords[occupied], distance[occupied])


def split_long(triangles: Float[np.ndarray, "num_faces 3 3"]) -> Float[np.ndarray, "num_pieces 3 3"]:
    """The same surface with no edge longer than a few bricks: longest edges are halved until none is left."""
    done = []
    while len(triangles):
        lengths = np.linalg.norm(np.roll(triangles, -1, 1) - triangles, axis=2)
        long = lengths.max(1) > _MAX_EDGE
        done.append(triangles[~long])
        # rotate the longest edge to the front: a -> b, c opposite
        turn = (lengths[long].argmax(1)[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(triangles[long], turn[:, :, None], 1).transpose(1, 0, 2)
        middle = (a + b) / 2
        triangles = np.concatenate([np.stack([a, middle, c], 1), np.stack([middle, b, c], 1)])
    return np.concatenate(done) if done else triangles


@wp.func
def _segment_squared(p: wp.vec3, a: wp.vec3, b: wp.vec3) -> float:
    ab = b - a
    ap = p - a
    t = wp.clamp(wp.dot(ap, ab) / wp.max(wp.dot(ab, ab), float(1.0e-30)), 0.0, 1.0)
    gap = ap - ab * t
    return wp.dot(gap, gap)


@wp.func
def _triangle_squared(p: wp.vec3, a: wp.vec3, b: wp.vec3, c: wp.vec3) -> float:
    """Squared distance from p to the triangle: to its plane where p projects into it, else to its nearest edge."""
    ab = b - a
    bc = c - b
    ca = a - c
    normal = wp.cross(ab, ca)
    area2 = wp.dot(normal, normal)
    if area2 > _FLAT * wp.dot(ab, ab) * wp.dot(ca, ca):
        side_ab = wp.dot(wp.cross(ab, normal), p - a)
        side_bc = wp.dot(wp.cross(bc, normal), p - b)
        side_ca = wp.dot(wp.cross(ca, normal), p - c)
        if side_ab >= 0.0 and side_bc >= 0.0 and side_ca >= 0.0:
            height = wp.dot(normal, p - a)
            return height * height / area2
    edges = wp.min(_segment_squared(p, a, b), _segment_squared(p, b, c))
    return wp.min(edges, _segment_squared(p, c, a))


@wp.func
def _first_brick(lowest: wp.float64, band: float) -> int:
    return wp.max(int(wp.floor((float(lowest) - band) / 8.0)), 0)


@wp.func
def _last_brick(highest: wp.float64, band: float, bricks: int) -> int:
    return wp.min(int(wp.floor((float(highest) + band) / 8.0)), bricks - 1)


@wp.func
def _brick_centre(i: int, j: int, k: int) -> wp.vec3d:
    return wp.vec3d(wp.float64(i * 8 + 4), wp.float64(j * 8 + 4), wp.float64(k * 8 + 4))


@wp.kernel
def _mark_bricks(corners: wp.array[wp.vec3d], bricks: int, band: float, slots: wp.array[wp.int32]) -> None:
    """Sets the slot of every brick that may hold a voxel of the band to 0."""
    t = wp.tid()
    a = corners[t * 3]
    b = corners[t * 3 + 1]
    c = corners[t * 3 + 2]
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    reach = band + float(_BRICK_REACH)
    for i in range(_first_brick(low[0], band), _last_brick(high[0], band, bricks) + 1):
        for j in range(_first_brick(low[1], band), _last_brick(high[1], band, bricks) + 1):
            for k in range(_first_brick(low[2], band), _last_brick(high[2], band, bricks) + 1):
                # relative to the brick: float32 then keeps 1e-6 voxel at any resolution
                centre = _brick_centre(i, j, k)
                gap2 = _triangle_squared(wp.vec3(0.0), wp.vec3(a - centre), wp.vec3(b - centre), wp.vec3(c - centre))
                if gap2 <= reach * reach:
                    slots[(i * bricks + j) * bricks + k] = 0


@wp.kernel
def _lower_distances(
    corners: wp.array[wp.vec3d],
    bricks: int,
    band: float,
    slots: wp.array[wp.int32],
    squared: wp.array[wp.float32],
) -> None:
    """Lowers the squared distance of every voxel near the triangle, in all marked bricks."""
    t = wp.tid()
    a = corners[t * 3]
    b = corners[t * 3 + 1]
    c = corners[t * 3 + 2]
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    reach = band + float(_BRICK_REACH)
    for i in range(_first_brick(low[0], band), _last_brick(high[0], band, bricks) + 1):
        for j in range(_first_brick(low[1], band), _last_brick(high[1], band, bricks) + 1):
            for k in range(_first_brick(low[2], band), _last_brick(high[2], band, bricks) + 1):
                slot = slots[(i * bricks + j) * bricks + k]
                centre = _brick_centre(i, j, k)
                ra = wp.vec3(a - centre)
                rb = wp.vec3(b - centre)
                rc = wp.vec3(c - centre)
                if slot >= 0 and _triangle_squared(wp.vec3(0.0), ra, rb, rc) <= reach * reach:
                    # voxel n of the brick lies at n - 3.5 from its centre
                    lo = wp.min(wp.min(ra, rb), rc) + wp.vec3(3.5 - band)
                    hi = wp.max(wp.max(ra, rb), rc) + wp.vec3(3.5 + band)
                    for x in range(wp.max(int(wp.ceil(lo[0])), 0), wp.min(int(wp.floor(hi[0])), 7) + 1):
                        for y in range(wp.max(int(wp.ceil(lo[1])), 0), wp.min(int(wp.floor(hi[1])), 7) + 1):
                            for z in range(wp.max(int(wp.ceil(lo[2])), 0), wp.min(int(wp.floor(hi[2])), 7) + 1):
                                p = wp.vec3(float(x) - 3.5, float(y) - 3.5, float(z) - 3.5)
                                gap2 = _triangle_squared(p, ra, rb, rc)
                                if gap2 < band * band:
                                    wp.atomic_min(squared, slot * 512 + (x * 8 + y) * 8 + z, gap2)
