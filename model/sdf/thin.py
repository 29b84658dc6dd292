"""Parts thinner than a voxel: a grid of signs does not show them. How much area they have, and a shell in their place.

A place of the surface is thin where no voxel near it is half a voxel deep inside. It is lost where, besides, the field
between the voxels around it is nowhere negative, on neither side. Parts are kept as a shell as a whole: a thin wall
that is not parallel to the grid is lost in stripes and specks only.
"""

from collections.abc import Callable
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..bricks import BRICK_SIZE, BRICK_VOXELS
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Cells, Flags, Floats, Ints, Points, Vectors
from .distance import Bricks, find_voxel, number_bricks, place_of, split_long
from .edges import connected_parts

wp.set_module_options(QUICK_TO_COMPILE)

_SPACING = 2.0  # voxels between the places looked at
_PIECE = 2.0  # voxels: the longest edge of what is kept or not kept as a shell
_THIN = 0.5  # voxels: a part is thin where no voxel near it is deeper inside than this
_ASIDE = 0.25  # voxels from the surface to where its inner side should be inside
_CELL = 2.0  # voxels: thin pieces belong to one part where they are in the same such cell or in neighbouring ones
# A part is kept as a shell if a fair share of the mesh is lost in it, or if it is lost nearly as a whole and long.
# Else it is small, or tapers: what is lost of it is said, and the solid stays as it is.
_LEAST_AREA = 4.0  # voxels squared; both sides of a wall count
_LEAST_OF_MESH, _LEAST_OF_PART = 0.005, 0.05  # both
_NEARLY_ALL, _LONG = 0.7, 8.0  # of the part's area; voxels, along an axis
_MOST_SHARE = 0.95  # of the mesh's area: with more in thin parts, all of it is a shell


class Lost(NamedTuple):
    area: float  # of lost places, in voxels squared
    total_area: float
    triangles: Bool[np.ndarray, " num_triangles"]  # those with a place that is thin

    @property
    def share(self) -> float:
        return self.area / self.total_area if self.total_area else 1.0

    @property
    def is_all(self) -> bool:
        """So it is where no voxel is inside."""
        return self.area >= (1 - 1e-6) * self.total_area


class ThinParts(NamedTuple):
    kind: Literal["solid", "shell", "mixed"]  # what the mesh is with these parts as a shell: all of it, or a part
    corners: wp.array  # vec3d, three for each of their triangles, in voxels


def find_lost(corners: wp.array, bricks: Bricks, inside: wp.array) -> Lost:
    """What the signs of a solid do not show of its surface, short triangles of three corners each, in voxels."""
    total, lost, thin = _areas(corners, bricks, inside, _SPACING).T
    return Lost(float(lost.sum(dtype=np.float64)), float(total.sum(dtype=np.float64)), thin > 0)


def _areas(corners: wp.array, bricks: Bricks, inside: wp.array, spacing: float) -> Float[np.ndarray, "num_triangles 3"]:
    """Of each triangle: its area, the lost and the thin part of it, by places that are at most `spacing` apart."""
    areas = wp.empty(len(corners) // 3, dtype=wp.vec3, device=bricks.device)
    inputs = [corners, bricks.slots, bricks.resolution // BRICK_SIZE, bricks.distance, inside, spacing, areas]
    wp.launch(_look_around, len(areas), inputs=inputs, device=bricks.device)
    return areas.numpy()


def thin_parts(corners: wp.array, lost: Lost, bricks: Bricks, inside: wp.array) -> ThinParts:
    """The thin parts of which more is lost than can be overlooked."""
    if lost.is_all:
        return ThinParts("shell", corners)
    if lost.area < _LEAST_AREA:
        return ThinParts("solid", corners[:0])
    pieces = split_long(corners.numpy().reshape(-1, 3, 3)[lost.triangles], _PIECE)
    flat = wp.array(pieces.reshape(-1, 3), dtype=wp.vec3d, device=bricks.device)
    area, lost_area, thin_area = _areas(flat, bricks, inside, 1e9).astype(np.float64).T
    rows = np.flatnonzero(thin_area > 0)
    if lost_area.sum() < _LEAST_AREA:
        return ThinParts("solid", corners[:0])
    part = _parts(np.floor(pieces[rows].mean(1) / _CELL).astype(np.int64))
    of_part, lost_of_part = np.bincount(part, area[rows]), np.bincount(part, lost_area[rows])
    kept = lost_of_part >= np.maximum(_LEAST_OF_MESH * lost.total_area, _LEAST_OF_PART * of_part)
    nearly_all = lost_of_part >= np.maximum(_NEARLY_ALL * of_part, _LEAST_AREA)
    of_those = nearly_all[part]
    kept[part[of_those]] |= _lengths(pieces[rows[of_those]], part[of_those]) >= _LONG
    rows = rows[(kept & (lost_of_part >= _LEAST_AREA))[part]]
    if area[rows].sum() > _MOST_SHARE * lost.total_area:
        return ThinParts("shell", corners)
    on_device = wp.array(pieces[rows].reshape(-1, 3), dtype=wp.vec3d, device=bricks.device)
    return ThinParts("mixed" if len(rows) else "solid", on_device)


def add_shell(
    solid: Bricks, inside: wp.array, shell: Bricks, *, level: float, insides: Callable[[Bricks], wp.array]
) -> tuple[Bricks, wp.array]:
    """The union of a solid and of what is nearer than `level` to other triangles, and which of its voxels are inside.

    `inside` says so of the solid in its own bricks, `insides` gives it, int8, for others: those of the shell that the
    solid lacks, whose voxels are all beyond its band. Where the shell is nearer, the distance is that to its surface.
    """
    resolution, device = solid.resolution, solid.device
    stored = solid.slots.numpy() >= 0
    beyond, coords = _numbered((shell.slots.numpy() >= 0) & ~stored, solid)
    infinite = wp.full(len(coords) * BRICK_VOXELS, np.inf, dtype=wp.float32, device=device)
    inside_beyond = insides(Bricks(coords, resolution, device, beyond, infinite))
    chosen = stored | (beyond.numpy() >= 0)
    fields = [solid.slots, solid.distance, inside, beyond, inside_beyond, shell.slots, shell.distance]
    while True:
        slots, coords = _numbered(chosen, solid)
        distance = wp.empty(len(coords) * BRICK_VOXELS, dtype=wp.float32, device=device)
        united = wp.empty(len(distance), dtype=wp.int8, device=device)
        inputs = [coords, resolution // BRICK_SIZE, *fields, float(level), distance, united]
        wp.launch(_unite, len(distance), inputs=inputs, device=device)
        holds = np.isfinite(distance.numpy().reshape(-1, BRICK_VOXELS)).any(1)
        if holds.all():
            return Bricks(coords, resolution, device, slots, distance), united
        chosen[chosen] = holds  # some hold no voxel of the band: deep in the solid where a part of the shell ends


def _numbered(chosen: Bool[np.ndarray, " num_places"], bricks: Bricks) -> tuple[wp.array, wp.array]:
    """Slots and coords of the chosen ones of all places of a grid like that of the bricks."""
    marks = wp.array(chosen.astype(np.int32), dtype=wp.int32, device=bricks.device)
    return number_bricks(marks, bricks.resolution // BRICK_SIZE)


def _parts(cells: Int[np.ndarray, "num_pieces 3"]) -> Int[np.ndarray, " num_pieces"]:
    """A number for each connected set of cells."""
    cells = cells - cells.min(0) + 1
    shape = tuple(cells.max(0) + 2)
    place, own = np.unique(np.ravel_multi_index(tuple(cells.T), shape), return_inverse=True)
    rows, columns = [], []
    for x, y, z in product((-1, 0, 1), repeat=3):
        step = (x * shape[1] + y) * shape[2] + z
        if step > 0:  # one of each two opposite neighbours
            beside = np.minimum(np.searchsorted(place, place + step), len(place) - 1)
            found = np.flatnonzero(place[beside] == place + step)
            rows.append(found)
            columns.append(beside[found])
    return connected_parts(np.concatenate(rows), np.concatenate(columns), len(place))[own]


def _lengths(
    pieces: Float[np.ndarray, "num_pieces 3 3"], part: Int[np.ndarray, " num_pieces"]
) -> Float[np.ndarray, " num_pieces"]:
    """Of each piece, the longest side of its part's bounding box."""
    parts, own = np.unique(part, return_inverse=True)
    low, high = np.full((len(parts), 3), np.inf), np.full((len(parts), 3), -np.inf)
    np.minimum.at(low, own, pieces.min(1))
    np.maximum.at(high, own, pieces.max(1))
    return (high - low).max(1)[own]


@wp.func
def _is_thin(p: wp.vec3d, slots: Ints, bricks_a_side: int, distance: Floats, inside: Flags) -> bool:
    """Whether no voxel is deep inside of the cell that p is in and those around it: of its 4^3 corners."""
    x = int(wp.floor(p[0] - wp.float64(0.5)))
    y = int(wp.floor(p[1] - wp.float64(0.5)))
    z = int(wp.floor(p[2] - wp.float64(0.5)))
    for i in range(64):  # first the corners of the whole, of which one is inside where it is thick
        dx = _order(i % 2 + i // 8 % 2 * 2)
        dy = _order(i // 2 % 2 + i // 16 % 2 * 2)
        dz = _order(i // 4 % 2 + i // 32 * 2)
        at = find_voxel(wp.vec3i(x + dx, y + dy, z + dz), bricks_a_side, slots)
        if at >= 0:  # noqa: SIM102 - Warp evaluates all of a condition
            if inside[at] == wp.int8(1) and distance[at] > float(_THIN):
                return False
    return True


@wp.func
def _order(i: int) -> int:
    return wp.where(i < 2, 3 * i - 1, i - 2)  # -1, 2, 0, 1


@wp.func
def _value_at(p: wp.vec3d, slots: Ints, bricks_a_side: int, distance: Floats, inside: Flags) -> float:
    """The signed distance between the voxels' centres, trilinear; at most a voxel, and so where nothing is stored."""
    q = p - wp.vec3d(wp.float64(0.5), wp.float64(0.5), wp.float64(0.5))
    x = int(wp.floor(q[0]))
    y = int(wp.floor(q[1]))
    z = int(wp.floor(q[2]))
    total = float(0.0)
    for i in range(8):
        at = find_voxel(wp.vec3i(x + i // 4, y + i // 2 % 2, z + i % 2), bricks_a_side, slots)
        value = float(1.0)
        if at >= 0:
            value = wp.min(distance[at], 1.0)
            if inside[at] == wp.int8(1):
                value = -value
        fx = float(q[0] - wp.float64(x))
        fy = float(q[1] - wp.float64(y))
        fz = float(q[2] - wp.float64(z))
        wx = wp.where(i // 4 == 1, fx, 1.0 - fx)
        wy = wp.where(i // 2 % 2 == 1, fy, 1.0 - fy)
        wz = wp.where(i % 2 == 1, fz, 1.0 - fz)
        total += wx * wy * wz * value
    return total


@wp.kernel
def _look_around(
    corners: Points, slots: Ints, bricks_a_side: int, distance: Floats, inside: Flags, spacing: float, areas: Vectors
) -> None:
    """Of each triangle: its area, the lost and the thin part of it, by places of the same area each."""
    t = wp.tid()
    a = corners[t * 3]
    b = corners[t * 3 + 1]
    c = corners[t * 3 + 2]
    ab = float(wp.length(b - a))
    bc = float(wp.length(c - b))
    ca = float(wp.length(a - c))
    if bc > wp.max(ab, ca):  # the longest edge first
        first = a
        a = b
        b = c
        c = first
    elif ca > ab:
        first = c
        c = b
        b = a
        a = first
    longest = wp.max(wp.max(ab, bc), wp.max(ca, 1.0e-9))
    area = 0.5 * float(wp.length(wp.cross(b - a, c - a)))
    normal = wp.cross(b - a, c - a)
    aside = normal * (wp.float64(_ASIDE) / wp.max(wp.length(normal), wp.float64(1.0e-30)))
    rows = int(wp.ceil(2.0 * area / longest / spacing))
    columns = int(wp.ceil(longest / spacing))
    rows = wp.max(rows, 1)
    lost = int(0)
    thin = int(0)
    for i in range(rows):
        for j in range(columns):
            # equal shares of the area: strips from c, wider and lower, each cut into as many places
            down = wp.sqrt((wp.float64(i) + wp.float64(0.5)) / wp.float64(rows))
            along = (wp.float64(j) + wp.float64(0.5)) / wp.float64(columns)
            p = c + down * ((a - c) + along * (b - a))
            if _is_thin(p, slots, bricks_a_side, distance, inside):
                thin += 1
                above = _value_at(p + aside, slots, bricks_a_side, distance, inside)
                if above >= 0.0 and _value_at(p - aside, slots, bricks_a_side, distance, inside) >= 0.0:
                    lost += 1
    share = area / float(rows * columns)
    areas[t] = wp.vec3(area, share * float(lost), share * float(thin))


@wp.kernel
def _unite(
    coords: Cells,
    bricks_a_side: int,
    solid_slots: Ints,
    to_solid: Floats,
    inside: Flags,
    beyond_slots: Ints,
    inside_beyond: Flags,
    shell_slots: Ints,
    to_shell: Floats,
    level: float,
    distance: Floats,
    united: Flags,
) -> None:
    i = wp.tid()
    place = place_of(coords[i // 512], bricks_a_side)
    solid = solid_slots[place]
    beyond = beyond_slots[place]
    shell = shell_slots[place]
    value = float(wp.inf)
    if solid >= 0:
        value = to_solid[solid * 512 + i % 512]
        if inside[solid * 512 + i % 512] == wp.int8(1):
            value = -value
    elif inside_beyond[beyond * 512 + i % 512] == wp.int8(1):
        value = -value
    if shell >= 0:
        value = wp.min(value, to_shell[shell * 512 + i % 512] - level)
    distance[i] = wp.abs(value)
    united[i] = wp.int8(wp.where(value < 0.0, 1, 0))
