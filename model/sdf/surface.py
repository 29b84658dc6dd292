"""Marching cubes on a sparse grid: only in cells whose 8 corners are all stored, with memory for stored bricks only."""

import numpy as np
from jaxtyping import Float, Int

from ..bricks import BRICK_SIZE, BRICK_VOXELS
from ..sparse_sdf import SparseSDF, Surface
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Bytes, Cells, Floats, Ints, Vectors
from .cases import CASES, EDGES
from .distance import find_voxel, number_bricks, place_of, sums_before, voxel_at

wp.set_module_options(QUICK_TO_COMPILE)


@wp.struct
class Field:
    """A value at every voxel of the stored bricks of a grid, NaN where none is stored."""

    bricks: Cells
    slots: Ints  # for every brick of the whole grid: its row in bricks, or -1
    bricks_a_side: int
    values: Floats  # 512 for every stored brick, in C order
    iso_level: float


def grid_surface(shape: SparseSDF) -> Surface:
    """The mesh of the grid itself, in the cube: the best that anything working on this grid can reach."""
    values = np.where(shape.brick_inside, np.float32(-1), np.float32(1))
    values[shape.brick_band] = shape.sdf  # both go brick by brick
    return extract_from_bricks(shape.brick_coords, values.reshape(-1), resolution=shape.resolution)


def extract_mesh(
    coords: Int[np.ndarray, "num_voxels 3"],
    sdf: Float[np.ndarray, " num_voxels"],
    *,
    resolution: int,
    iso_level: float = 0.0,
    device: str = "cpu",
) -> Surface:
    """The surface where the SDF (positive outside, any unit) crosses `iso_level`; voxels must be unique, in any order.

    Vertices are shared by all faces around them. Returns no vertices and no faces where nothing crosses. `device` is
    where the kernels run: "cpu" or "cuda".
    """
    coords = np.ascontiguousarray(coords, np.int32)
    sdf = np.ascontiguousarray(sdf, np.float32).reshape(-1)
    if coords.ndim != 2 or coords.shape[1] != 3 or len(coords) != len(sdf):
        raise ValueError(f"coords are {coords.shape} and sdf {sdf.shape}; expected [N, 3] and [N]")
    if len(coords) and (coords.min() < 0 or coords.max() >= resolution):
        raise ValueError(f"coords reach from {coords.min()} to {coords.max()}; expected 0 to {resolution - 1}")
    bricks_a_side = -(-resolution // BRICK_SIZE)
    voxels = _send(coords, wp.vec3i, device)
    marks = wp.zeros(bricks_a_side**3, dtype=wp.int32, device=device)
    wp.launch(_mark, len(coords), inputs=[voxels, bricks_a_side, marks], device=device)
    slots, bricks = number_bricks(marks, bricks_a_side)
    values = wp.full(len(bricks) * BRICK_VOXELS, np.nan, dtype=wp.float32, device=device)
    inputs = [voxels, _send(sdf, wp.float32, device), bricks_a_side, slots, values]
    wp.launch(_store, len(coords), inputs=inputs, device=device)
    return _march(bricks, slots, values, resolution=resolution, iso_level=iso_level)


def extract_from_bricks(
    brick_coords: Int[np.ndarray, "num_bricks 3"],
    values: Float[np.ndarray, " num_values"],
    *,
    resolution: int,
    device: str = "cpu",
) -> Surface:
    """As extract_mesh, from the 512 values of each brick in C order, float32; NaN where no voxel is stored."""
    bricks_a_side = -(-resolution // BRICK_SIZE)
    table = np.full((bricks_a_side,) * 3, -1, np.int32)
    table[tuple(brick_coords.T)] = np.arange(len(brick_coords))
    bricks, slots = _send(brick_coords, wp.vec3i, device), _send(table.reshape(-1), wp.int32, device)
    return _march(bricks, slots, _send(values, wp.float32, device), resolution=resolution, iso_level=0.0)


def _send(array: np.ndarray, dtype: type, device: str) -> wp.array:
    """On the CPU the array's own memory: at R = 512 a copy of all coordinates would be what counts most."""
    return wp.array(np.ascontiguousarray(array), dtype=dtype, device=device, copy=False)


def _march(bricks: wp.array, slots: wp.array, values: wp.array, *, resolution: int, iso_level: float) -> Surface:
    field, device = Field(), values.device
    field.bricks, field.slots, field.values = bricks, slots, values
    field.bricks_a_side, field.iso_level = -(-resolution // BRICK_SIZE), float(iso_level)

    def launch(kernel: wp.Kernel, *inputs: object) -> None:
        wp.launch(kernel, num_lines, inputs=[field, *inputs], device=device)

    num_voxels = len(field.values)
    num_lines = num_voxels // BRICK_SIZE
    cases = wp.zeros(num_voxels, dtype=wp.uint8, device=device)  # of the cell whose lowest corner the voxel is
    cuts = wp.zeros(num_voxels, dtype=wp.uint8, device=device)  # bit a: the edge along axis a has a vertex
    num_triangles = _send(CASES.num_triangles.astype(np.int32), wp.int32, device)
    triangles_of, vertices_of = (wp.zeros(num_lines, dtype=wp.int32, device=device) for _ in range(2))
    launch(_classify, num_triangles, cases, triangles_of)
    launch(_cut_edges, cases, cuts, vertices_of)

    num_faces, first_face = sums_before(triangles_of)
    num_vertices, first_vertex = sums_before(vertices_of)
    vertices = wp.empty(num_vertices, dtype=wp.vec3, device=device)
    faces = wp.empty(num_faces, dtype=wp.vec3i, device=device)
    launch(_write_vertices, cuts, first_vertex, 2 / resolution, vertices)
    tables = [num_triangles, *(_send(part.astype(np.int32), wp.int32, device) for part in (CASES.triangles, EDGES))]
    launch(_write_faces, cases, cuts, first_vertex, first_face, *tables, faces)
    return Surface(vertices.numpy().reshape(-1, 3), faces.numpy().reshape(-1, 3))


@wp.func
def _find(field: Field, voxel: wp.vec3i) -> int:
    """Where the voxel's value is, or -1."""
    return find_voxel(voxel, field.bricks_a_side, field.slots)


@wp.func
def _corner(voxel: wp.vec3i, corner: int) -> wp.vec3i:
    return voxel + wp.vec3i(corner // 4, corner // 2 % 2, corner % 2)


@wp.func
def _step(axis: int) -> wp.vec3i:
    step = wp.vec3i(0, 0, 0)
    step[axis] = 1
    return step


@wp.func
def _num_bits(mask: int) -> int:
    """How many of three bits are set."""
    return (mask & 1) + (mask >> 1 & 1) + (mask >> 2 & 1)


@wp.kernel
def _mark(voxels: Cells, bricks_a_side: int, marks: Ints) -> None:
    marks[place_of(voxels[wp.tid()] / 8, bricks_a_side)] = 1


@wp.kernel
def _store(voxels: Cells, sdf: Floats, bricks_a_side: int, slots: Ints, values: Floats) -> None:
    row = wp.tid()
    values[find_voxel(voxels[row], bricks_a_side, slots)] = sdf[row]


@wp.kernel
def _classify(field: Field, num_triangles: Ints, cases: Bytes, triangles_of: Ints) -> None:
    """The case of every cell of a line, 0 where a corner is not stored, and how many triangles they have together."""
    line = wp.tid()
    found = int(0)
    for z in range(8):
        voxel = voxel_at(line * 8 + z, field.bricks)
        case = int(0)
        corner = int(0)
        while corner < 8:
            at = _find(field, _corner(voxel, corner))
            if at < 0 or wp.isnan(field.values[wp.max(at, 0)]):
                case = 0
                corner = 8
            else:
                if field.values[at] < field.iso_level:
                    case += 1 << corner
                corner += 1
        cases[line * 8 + z] = wp.uint8(case % 255)  # all inside is as empty as all outside
        found += num_triangles[case]
    triangles_of[line] = found


@wp.kernel
def _cut_edges(field: Field, cases: Bytes, cuts: Bytes, vertices_of: Ints) -> None:
    """Which edges from the voxels of a line have a vertex: their sign changes, and one of the cells around is whole."""
    line = wp.tid()
    found = int(0)
    for z in range(8):
        voxel = voxel_at(line * 8 + z, field.bricks)
        starts_inside = field.values[line * 8 + z] < field.iso_level
        mask = int(0)
        for axis in range(3):
            end = _find(field, voxel + _step(axis))
            if end >= 0 and starts_inside != (field.values[end] < field.iso_level):
                for around in range(4):
                    low = voxel - _step((axis + 1) % 3) * (around % 2) - _step((axis + 2) % 3) * (around // 2)
                    cell = _find(field, low)
                    if cell >= 0 and cases[wp.max(cell, 0)] != wp.uint8(0):
                        mask = mask | 1 << axis
        cuts[line * 8 + z] = wp.uint8(mask)
        found += _num_bits(mask)
    vertices_of[line] = found


@wp.kernel
def _write_vertices(field: Field, cuts: Bytes, first_vertex: Ints, voxel_size: float, vertices: Vectors) -> None:
    line = wp.tid()
    row = first_vertex[line]
    for z in range(8):
        voxel = voxel_at(line * 8 + z, field.bricks)
        for axis in range(3):
            if (int(cuts[line * 8 + z]) >> axis & 1) == 1:
                start = wp.float64(field.values[line * 8 + z]) - wp.float64(field.iso_level)
                end = wp.float64(field.values[_find(field, voxel + _step(axis))]) - wp.float64(field.iso_level)
                place = wp.vec3d(voxel) + wp.vec3d(wp.float64(0.5), wp.float64(0.5), wp.float64(0.5))
                place[axis] = place[axis] + start / (start - end)
                vertices[row] = wp.vec3(place * wp.float64(voxel_size)) - wp.vec3(1.0)
                row += 1


@wp.kernel
def _write_faces(
    field: Field,
    cases: Bytes,
    cuts: Bytes,
    first_vertex: Ints,
    first_face: Ints,
    num_triangles: Ints,
    triangles: wp.array3d[wp.int32],
    edges: wp.array2d[wp.int32],
    faces: Cells,
) -> None:
    line = wp.tid()
    row = first_face[line]
    for z in range(8):
        voxel = voxel_at(line * 8 + z, field.bricks)
        case = int(cases[line * 8 + z])
        for triangle in range(num_triangles[case]):
            face = wp.vec3i(0, 0, 0)
            for side in range(3):
                edge = triangles[case, triangle, side]
                axis = edges[edge, 1]
                at = _find(field, _corner(voxel, edges[edge, 0]))
                # The vertices of a line are numbered voxel by voxel, those of a voxel by axis.
                vertex = first_vertex[at // 8] + _num_bits(int(cuts[at]) & ((1 << axis) - 1))
                for before in range(at // 8 * 8, at):
                    vertex += _num_bits(int(cuts[before]))
                face[side] = vertex
            faces[row] = face
            row += 1
