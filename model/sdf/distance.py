"""Unsigned distance to a triangle mesh in a narrow band: triangles are scattered into 8^3 bricks of voxels.

No tree and no search: every triangle visits the bricks near it and lowers the distance of the voxels there. One kernel
source serves CPU and CUDA. Lengths are in voxels: voxel i of an axis has its centre at i + 0.5.
"""

from dataclasses import dataclass

import numpy as np
import warp as wp
from jaxtyping import Float, Int

BRICK_SIZE = 8
BRICK_VOXELS = BRICK_SIZE**3

wp.config.log_level = wp.LOG_ERROR  # no banner
wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile

LONG = 4.0 * BRICK_SIZE  # longer edges are split, so that no thread walks through the whole grid
_BRICK_REACH = 3.5 * 3**0.5  # from a brick's centre to the farthest voxel centre in it
_FLAT = 1e-12  # squared sine below which a triangle is treated as its three edges


@dataclass(frozen=True)
class Bricks:
    """The bricks that hold a voxel of the band, and the distances in them. Arrays of warp lie on `device`."""

    coords: Int[np.ndarray, "num_bricks 3"]  # int32, in bricks, C order of x, y, z
    num_voxels: Int[np.ndarray, " num_bricks"]  # int32, of the band
    resolution: int
    device: str
    on_device: wp.array  # vec3i: coords
    slots: wp.array  # int32, for every brick of the whole grid: its row in coords, or -1
    distance: wp.array  # float32, 512 for every brick, unsigned; inf beyond the band

    def __len__(self) -> int:
        return len(self.coords)


def band_bricks(corners: wp.array, *, resolution: int, truncation: float, level: float, device: str) -> Bricks:
    """Exact distances of all voxels for which (distance - level) / truncation < 1, to triangles of three corners each.

    `corners` is a device array of vec3d in voxels; the triangles should be short (see split_long).
    """
    bricks_a_side = resolution // BRICK_SIZE
    num_triangles = len(corners) // 3
    grid = [bricks_a_side, float(truncation + level)]
    slots = wp.full(bricks_a_side**3, -1, dtype=wp.int32, device=device)
    wp.launch(_mark_bricks, num_triangles, inputs=[corners, *grid, slots], device=device)
    marked = np.flatnonzero(slots.numpy() == 0)
    _number(slots, marked)
    squared = wp.full(len(marked) * BRICK_VOXELS, np.inf, dtype=wp.float32, device=device)
    wp.launch(_lower_distances, num_triangles, inputs=[corners, *grid, slots, squared], device=device)

    band = [float(level), float(truncation)]
    counts = wp.zeros(len(marked), dtype=wp.int32, device=device)
    wp.launch(_take_roots, len(marked), inputs=[squared, *band, counts], device=device)
    num_voxels = counts.numpy()
    kept = np.flatnonzero(num_voxels)
    if len(kept) < len(marked):
        distance = wp.empty(len(kept) * BRICK_VOXELS, dtype=wp.float32, device=device)
        rows = wp.array(kept.astype(np.int32), dtype=wp.int32, device=device)
        wp.launch(_gather_bricks, len(distance), inputs=[squared, rows, distance], device=device)
        _number(slots, marked[kept])
    else:
        distance = squared
    coords = np.stack(np.unravel_index(marked[kept], (bricks_a_side,) * 3), 1).astype(np.int32)
    return Bricks(
        coords=coords,
        num_voxels=num_voxels[kept],
        resolution=resolution,
        device=device,
        on_device=wp.array(coords, dtype=wp.vec3i, device=device),
        slots=slots,
        distance=distance,
    )


def _number(slots: wp.array, places: Int[np.ndarray, " num_bricks"]) -> None:
    table = np.full(len(slots), -1, np.int32)
    table[places] = np.arange(len(places), dtype=np.int32)
    slots.assign(table)


def split_long(
    triangles: Float[np.ndarray, "num_faces 3 3"], max_edge: float = LONG
) -> Float[np.ndarray, "num_pieces 3 3"]:
    """The same surface with no edge longer than `max_edge`: longest edges are halved until none is left.

    Neighbours halve the edge that they share at the same point, so that a closed surface stays closed.
    """
    done = []
    while len(triangles):
        lengths = np.linalg.norm(np.roll(triangles, -1, 1) - triangles, axis=2)
        long = lengths.max(1) > max_edge
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


@wp.kernel
def _take_roots(squared: wp.array[wp.float32], level: float, truncation: float, counts: wp.array[wp.int32]) -> None:
    """Squared distances of a brick to distances, in place; beyond the band as the stored value rounds: inf."""
    brick = wp.tid()
    found = int(0)
    for i in range(brick * 512, brick * 512 + 512):
        distance = wp.sqrt(squared[i])
        if (distance - level) / truncation < 1.0:
            found += 1
            squared[i] = distance
        else:
            squared[i] = wp.inf
    counts[brick] = found


@wp.kernel
def _gather_bricks(source: wp.array[wp.float32], rows: wp.array[wp.int32], target: wp.array[wp.float32]) -> None:
    i = wp.tid()
    target[i] = source[rows[i // 512] * 512 + i % 512]
