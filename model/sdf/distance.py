"""Unsigned distance to a triangle mesh in a narrow band: triangles are scattered into 8^3 bricks of voxels.

No tree and no search: every triangle visits the bricks near it and lowers the distance of the voxels there. One kernel
source serves CPU and CUDA. Lengths are in voxels: voxel i of an axis has its centre at i + 0.5.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..bricks import BRICK_SIZE, BRICK_VOXELS
from ..sparse_sdf import Faces, Vertices
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Cells, Floats, Ints, Points

wp.set_module_options(QUICK_TO_COMPILE)

LONG = 4.0 * BRICK_SIZE  # longer edges are split, so that no thread walks through the whole grid
_BRICK_REACH = 3.5 * 3**0.5  # from a brick's centre to the farthest voxel centre in it
_FLAT = 1e-12  # squared sine below which a triangle is treated as its three edges


@dataclass(frozen=True)
class Bricks:
    """The bricks that hold a voxel of the band, and the distances in them, on `device`."""

    coords: wp.array  # vec3i, in bricks, C order of x, y, z
    resolution: int
    device: str
    slots: wp.array  # int32, for every brick of the whole grid: its row in coords, or -1
    distance: wp.array  # float32, 512 for every brick, unsigned; inf beyond the band

    def __len__(self) -> int:
        return len(self.coords)


def band_bricks(corners: wp.array, *, resolution: int, truncation: float, level: float, device: str) -> Bricks:
    """Exact distances of all voxels for which (distance - level) / truncation < 1, to triangles of three corners each.

    `corners` is a device array of vec3d in voxels; the triangles should be short (see short_triangles).
    """
    bricks_a_side = resolution // BRICK_SIZE
    num_triangles = len(corners) // 3
    grid = [bricks_a_side, float(truncation + level)]
    marks = wp.zeros(bricks_a_side**3, dtype=wp.int32, device=device)
    wp.launch(_visit_bricks, num_triangles, inputs=[corners, *grid, marks, None, None], device=device)
    slots, coords = number_bricks(marks, bricks_a_side)
    squared = wp.full(len(coords) * BRICK_VOXELS, np.inf, dtype=wp.float32, device=device)
    wp.launch(_visit_bricks, num_triangles, inputs=[corners, *grid, None, slots, squared], device=device)

    marks.zero_()
    band = [float(level), float(truncation)]
    wp.launch(
        _take_roots, len(squared) // BRICK_SIZE, inputs=[squared, *band, coords, bricks_a_side, marks], device=device
    )
    kept_slots, kept = number_bricks(marks, bricks_a_side)
    distance = squared
    if len(kept) < len(coords):
        distance = wp.empty(len(kept) * BRICK_VOXELS, dtype=wp.float32, device=device)
        inputs = [squared, slots, kept, bricks_a_side, distance]
        wp.launch(_gather_bricks, len(distance), inputs=inputs, device=device)
    return Bricks(coords=kept, resolution=resolution, device=device, slots=kept_slots, distance=distance)


def sums_before(counts: wp.array) -> tuple[int, wp.array]:
    """The sum of all, and for each the sum of those before it."""
    sums = wp.empty_like(counts)
    if not len(counts):
        return 0, sums
    wp.utils.array_scan(counts, sums, inclusive=False)
    return int(sums[-1:].numpy()[0]) + int(counts[-1:].numpy()[0]), sums


def number_bricks(marks: wp.array, bricks_a_side: int) -> tuple[wp.array, wp.array]:
    """Slots, in which the bricks marked 1 are numbered in C order, and their coords."""
    count, slots = sums_before(marks)
    coords = wp.empty(count, dtype=wp.vec3i, device=marks.device)
    wp.launch(_write_slots, len(marks), inputs=[marks, bricks_a_side, slots, coords], device=marks.device)
    return slots, coords


def short_triangles(vertices: Vertices, faces: Faces, *, device: str) -> wp.array:
    """The corners of the faces on the device, three vec3d each; the faces are split where an edge is too long."""
    points = wp.array(vertices, dtype=wp.vec3d, device=device)
    triangles = wp.array(faces.astype(np.int32), dtype=wp.vec3i, device=device)
    corners = wp.empty(3 * len(faces), dtype=wp.vec3d, device=device)
    too_long = wp.zeros(1, dtype=wp.int32, device=device)
    wp.launch(_gather_corners, len(faces), inputs=[points, triangles, LONG, corners, too_long], device=device)
    if too_long.numpy()[0]:
        return wp.array(split_long(vertices[faces]).reshape(-1, 3), dtype=wp.vec3d, device=device)
    return corners


def split_long(
    triangles: Float[np.ndarray, "num_faces 3 3"], max_edge: float = LONG
) -> Float[np.ndarray, "num_pieces 3 3"]:
    """The same surface with no edge longer than `max_edge`: longest edges are halved until none is left.

    Neighbours halve the edge that they share at the same point, so that a closed surface stays closed.
    """
    done = []
    corners = np.ascontiguousarray(triangles.transpose(1, 2, 0))  # by corner, then axis: these are many
    while corners.shape[2]:
        x, y, z = (np.roll(corners, -1, 0) - corners).swapaxes(0, 1)
        lengths = np.sqrt(x * x + y * y + z * z)
        long = lengths.max(0) > max_edge
        done.append(corners[:, :, ~long])
        # rotate the longest edge to the front: a -> b, c opposite
        turn = (lengths[:, long].argmax(0) + np.arange(3)[:, None]) % 3
        a, b, c = np.take_along_axis(corners[:, :, long], turn[:, None], 0)
        middle = (a + b) / 2
        corners = np.concatenate([np.stack([a, middle, c]), np.stack([middle, b, c])], axis=2)
    return np.concatenate(done, axis=2).transpose(2, 0, 1) if done else triangles


@wp.kernel
def _gather_corners(vertices: Points, faces: Cells, max_edge: wp.float64, corners: Points, too_long: Ints) -> None:
    t = wp.tid()
    a = vertices[faces[t][0]]
    b = vertices[faces[t][1]]
    c = vertices[faces[t][2]]
    corners[t * 3] = a
    corners[t * 3 + 1] = b
    corners[t * 3 + 2] = c
    if wp.max(wp.max(wp.length(b - a), wp.length(c - b)), wp.length(a - c)) > max_edge:
        too_long[0] = 1


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
def _lower_in_brick(a: wp.vec3, b: wp.vec3, c: wp.vec3, band: float, first: int, squared: Floats) -> None:
    """Lowers the squared distances of a brick's voxels, given the first one; corners are relative to its centre."""
    low = wp.min(wp.min(a, b), c)
    high = wp.max(wp.max(a, b), c)
    normal = wp.cross(b - a, a - c)
    beyond = 1.001 * band * wp.length(normal)  # times a height above the plane: surely out of reach
    # voxel n of the brick lies at n - 3.5 from its centre
    begin = low + wp.vec3(3.5 - band)
    end = high + wp.vec3(3.5 + band)
    for x in range(wp.max(int(wp.ceil(begin[0])), 0), wp.min(int(wp.floor(end[0])), 7) + 1):
        for y in range(wp.max(int(wp.ceil(begin[1])), 0), wp.min(int(wp.floor(end[1])), 7) + 1):
            for z in range(wp.max(int(wp.ceil(begin[2])), 0), wp.min(int(wp.floor(end[2])), 7) + 1):
                p = wp.vec3(float(x) - 3.5, float(y) - 3.5, float(z) - 3.5)
                voxel = first + (x * 8 + y) * 8 + z
                apart = p - wp.min(wp.max(p, low), high)
                # none that is nearer to another triangle than to this one's bounding box
                if wp.dot(apart, apart) <= 1.0001 * squared[voxel] and wp.abs(wp.dot(normal, p - a)) <= beyond:
                    gap2 = _triangle_squared(p, a, b, c)
                    if gap2 < band * band:
                        wp.atomic_min(squared, voxel, gap2)


@wp.kernel
def _visit_bricks(corners: Points, bricks: int, band: float, marks: Ints, slots: Ints, squared: Floats) -> None:
    """Marks every brick that may hold a voxel of the triangle's band with 1, given marks.

    Given slots, lowers the squared distance of every voxel near the triangle in the bricks that have one.
    """
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
                place = (i * bricks + j) * bricks + k
                # relative to the brick: float32 then keeps 1e-6 voxel at any resolution
                centre = wp.vec3d(wp.float64(i * 8 + 4), wp.float64(j * 8 + 4), wp.float64(k * 8 + 4))
                ra = wp.vec3(a - centre)
                rb = wp.vec3(b - centre)
                rc = wp.vec3(c - centre)
                if _triangle_squared(wp.vec3(0.0), ra, rb, rc) <= reach * reach:
                    if marks:
                        marks[place] = 1
                    elif slots[place] >= 0:
                        _lower_in_brick(ra, rb, rc, band, slots[place] * 512, squared)


@wp.kernel
def _write_slots(marks: Ints, bricks: int, slots: Ints, coords: Cells) -> None:
    """Of the marked, coords by slot; of the others, slots to -1."""
    place = wp.tid()
    if marks[place] == 0:
        slots[place] = -1
    else:
        coords[slots[place]] = wp.vec3i(place // (bricks * bricks), place // bricks % bricks, place % bricks)


@wp.func
def place_of(brick: wp.vec3i, bricks: int) -> int:
    """Of a brick in the whole grid."""
    return (brick[0] * bricks + brick[1]) * bricks + brick[2]


@wp.func
def voxel_at(i: int, coords: Cells) -> wp.vec3i:
    """The place in the grid of a voxel of the stored bricks, given where its value is."""
    return coords[i // 512] * 8 + wp.vec3i(i // 64 % 8, i // 8 % 8, i % 8)


@wp.func
def find_voxel(voxel: wp.vec3i, bricks: int, slots: Ints) -> int:
    """Where a voxel's value is among those of the stored bricks, or -1."""
    if wp.min(voxel) < 0 or wp.max(voxel) >= bricks * 8:
        return -1
    slot = slots[((voxel[0] >> 3) * bricks + (voxel[1] >> 3)) * bricks + (voxel[2] >> 3)]
    if slot < 0:
        return -1
    return slot * 512 + (voxel[0] & 7) * 64 + (voxel[1] & 7) * 8 + (voxel[2] & 7)


@wp.kernel
def _take_roots(squared: Floats, level: float, truncation: float, coords: Cells, bricks: int, marks: Ints) -> None:
    """Squared distances of a line to distances, in place; beyond the band as the stored value rounds: inf.

    Marks the brick if any is in the band.
    """
    line = wp.tid()
    found = int(0)
    for i in range(line * 8, line * 8 + 8):
        distance = wp.sqrt(squared[i])
        if (distance - level) / truncation < 1.0:
            found = 1
            squared[i] = distance
        else:
            squared[i] = wp.inf
    if found == 1:
        marks[place_of(coords[line // 64], bricks)] = 1


@wp.kernel
def _gather_bricks(source: Floats, slots: Ints, coords: Cells, bricks: int, target: Floats) -> None:
    i = wp.tid()
    target[i] = source[slots[place_of(coords[i // 512], bricks)] * 512 + i % 512]
