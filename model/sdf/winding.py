"""The generalised winding number of a triangle soup: the sum of its solid angles over 4 pi (Jacobson et al. 2013).

Far groups of triangles count as one dipole (Barill et al. 2018), as soon as a bound on the error of that says that they
may. The same bound lets one walk through the tree serve many voxels: away from the triangles the winding number is
smooth, so that its value and gradient in the middle of a block, and near triangles voxel by voxel, decide on which side
of 0.5 the voxels of the block are.
Only those that this leaves open are asked again, in blocks of half the size, at last one by one.
"""

from typing import NamedTuple

import numpy as np
import warp as wp
from jaxtyping import Float, Int

from model.sdf.distance import BRICK_SIZE, Bricks, _triangle_squared

wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile

_TRIANGLES_A_LEAF = 4
# Largest error that one group may add, as a winding number. The sum is checked in blocks; the errors of single queries
# have either sign, and tests hold their sum below 0.01.
_GROUP_ERROR = 3e-3
# The same for blocks, where all errors add up to the bound that decides: smaller, so that few voxels are left open.
_SHARED_ERROR = 1e-3
_SHARED_SIDE = 4  # of a block whose voxels walk the tree together and each look at the near triangles
_PerVoxel = wp.types.vector(length=_SHARED_SIDE**3, dtype=wp.float32)
_OPEN = 2  # what `inside` holds before it is decided


class WindingTree(NamedTuple):
    """A complete binary tree over triangles in Morton order; children of node i are 2i + 1 and 2i + 2."""

    corners: wp.array  # vec3d, three per triangle
    leaf_starts: wp.array  # int32, first triangle of every leaf, and the end
    centre: wp.array  # vec3 per node, area-weighted
    vector_area: wp.array  # vec3 per node: sum of area times normal
    shape: wp.array  # vec3 per node: radius, and what first and second order errors are proportional to
    num_inner: int


def winding_numbers(
    points: Float[np.ndarray, "num_points 3"], triangles: Float[np.ndarray, "num_faces 3 3"], *, device: str
) -> Float[np.ndarray, " num_points"]:
    """Winding number at each point: 1 inside and 0 outside of a closed mesh whose normals point outward."""
    winding = wp.zeros(len(points), dtype=wp.float32, device=device)
    where = wp.array(np.ascontiguousarray(points, np.float64), dtype=wp.vec3d, device=device)
    wp.launch(_wind_points, len(points), inputs=[where, *build_tree(triangles, device=device), winding], device=device)
    return winding.numpy()


def decide_insides(
    triangles: Float[np.ndarray, "num_faces 3 3"], whole: wp.array, bricks: Bricks, *, nudge: wp.vec3d
) -> wp.array:
    """Whether |whole - w| > 0.5, int8, 512 for every brick; w is the winding number at the voxel's centre plus nudge.

    `whole` holds an integer for every voxel; triangles in voxels.
    """
    inside = wp.full(len(whole), _OPEN, dtype=wp.int8, device=bricks.device)
    inputs = [bricks.on_device, nudge, *build_tree(triangles, device=bricks.device), whole, inside]
    side = BRICK_SIZE
    while side:
        blocks = len(bricks) * (BRICK_SIZE // side) ** 3
        wp.launch(_decide_blocks, blocks, inputs=[side, *inputs], device=bricks.device)
        side //= 2
    return inside


def build_tree(triangles: Float[np.ndarray, "num_faces 3 3"], *, device: str) -> WindingTree:
    middle = triangles.mean(1)
    order = _morton_order(middle)
    triangles, middle = triangles[order], middle[order]
    depth = max(int(np.log2(max(len(triangles) // _TRIANGLES_A_LEAF, 1))), 0)
    starts = np.arange(2**depth + 1) * len(triangles) // 2**depth

    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]) / 2
    area = np.linalg.norm(normal, axis=1, keepdims=True) + 1e-12  # keeps the centre of flat groups defined
    moment = (normal[:, :, None] * middle[:, None, :]).reshape(-1, 9)
    level = [
        np.add.reduceat(np.hstack([area, area * middle, normal, moment]), starts[:-1]),
        np.minimum.reduceat(triangles.min(1), starts[:-1]),
        np.maximum.reduceat(triangles.max(1), starts[:-1]),
    ]
    levels = [level]
    for _ in range(depth):
        sums, low, high = (part.reshape(-1, 2, part.shape[1]) for part in levels[0])
        levels.insert(0, [sums.sum(1), low.min(1), high.max(1)])
    sums, low, high = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    centre, vector_area = sums[:, 1:4] / sums[:, :1], sums[:, 4:7]
    radius = np.linalg.norm(np.maximum(high - centre, centre - low), axis=1)
    # How a dipole field f(x) = S.x / |x|^3 changes over a displacement e, |x| >= d: the first order of a group, whose
    # moment about its centre is M, is at most sqrt(6) |M| / d^3; the second 3 |S| e^2 / d^4.
    moment = sums[:, 7:].reshape(-1, 3, 3) - vector_area[:, :, None] * centre[:, None, :]
    first, second = np.sqrt(6) * np.linalg.norm(moment, axis=(1, 2)), 3 * sums[:, 0]

    def send(values: np.ndarray, dtype: type) -> wp.array:
        return wp.array(np.ascontiguousarray(values), dtype=dtype, device=device)

    return WindingTree(
        corners=send(triangles.reshape(-1, 3), wp.vec3d),
        leaf_starts=send(starts.astype(np.int32), wp.int32),
        centre=send(centre.astype(np.float32), wp.vec3),
        vector_area=send(vector_area.astype(np.float32), wp.vec3),
        shape=send(np.stack([radius, first, second], 1).astype(np.float32), wp.vec3),
        num_inner=2**depth - 1,
    )


def _morton_order(points: Float[np.ndarray, "num_points 3"]) -> Int[np.ndarray, " num_points"]:
    low = points.min(0)
    cells = ((points - low) / max(np.ptp(points, axis=0).max(), 1e-30) * 1023).astype(np.int64)
    bits = (cells[:, :, None] >> np.arange(10)) & 1
    return (bits << (3 * np.arange(10) + np.arange(3)[:, None])).sum((1, 2)).argsort(kind="stable")


@wp.func
def _next_node(node: int) -> int:
    """The node to visit when `node` and all below it are done; 0 when the walk is over."""
    while node > 0 and node % 2 == 0:  # a right child: its parent is done as well
        node = (node - 1) // 2
    return wp.where(node == 0, 0, node + 1)


@wp.func
def _bound(shape: wp.vec3, far: float, reach: float) -> float:
    """Bound on the error of a group as a dipole over a block; 1, the whole winding number, where the two may meet."""
    gap = far - shape[0] - reach
    if gap <= 0.0:
        return 1.0
    extent = shape[0] + reach
    return wp.min((shape[1] + shape[2] * extent * extent / gap) / (gap * gap * gap * 4.0 * wp.pi), 1.0)


@wp.func
def _dipole(vector_area: wp.vec3, to_group: wp.vec3, far: float) -> float:
    return wp.dot(vector_area, to_group) / (far * far * far)


@wp.func
def _dipole_gradient(vector_area: wp.vec3, to_group: wp.vec3, far: float) -> wp.vec3:
    return (3.0 * wp.dot(vector_area, to_group) / (far * far) * to_group - vector_area) / (far * far * far)


@wp.func
def _solid_angle(a: wp.vec3d, b: wp.vec3d, c: wp.vec3d) -> float:
    """Of the triangle seen from the origin (van Oosterom and Strackee 1983)."""
    la = wp.length(a)
    lb = wp.length(b)
    lc = wp.length(c)
    below = la * lb * lc + wp.dot(a, b) * lc + wp.dot(b, c) * la + wp.dot(c, a) * lb
    # in float64, because its sign says on which side of the triangle the point is
    volume = wp.dot(a, wp.cross(b, c))
    return 2.0 * wp.atan2(float(volume), float(below))


@wp.func
def _edge_gradient(a: wp.vec3, b: wp.vec3) -> wp.vec3:
    la = wp.length(a)
    lb = wp.length(b)
    return wp.cross(a, b) * ((la + lb) / wp.max(la * lb * (la * lb + wp.dot(a, b)), 1.0e-30))


@wp.func
def _solid_angle_gradient(a: wp.vec3, b: wp.vec3, c: wp.vec3) -> wp.vec3:
    """How the solid angle grows as the origin moves: the field of a current around the triangle (Biot and Savart)."""
    return _edge_gradient(a, b) + _edge_gradient(b, c) + _edge_gradient(c, a)


@wp.func
def _winding_number(
    q: wp.vec3d,
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    shape: wp.array[wp.vec3],
    num_inner: int,
) -> float:
    total = float(0.0)  # solid angle
    q32 = wp.vec3(q)
    node = int(0)
    walking = int(1)
    while walking == 1:
        to_group = centre[node] - q32
        far = wp.length(to_group)
        if _bound(shape[node], far, 0.0) <= _GROUP_ERROR:
            total += _dipole(vector_area[node], to_group, far)
            node = _next_node(node)
        elif node < num_inner:
            node = 2 * node + 1
        else:
            for t in range(leaf_starts[node - num_inner], leaf_starts[node - num_inner + 1]):
                total += _solid_angle(corners[t * 3] - q, corners[t * 3 + 1] - q, corners[t * 3 + 2] - q)
            node = _next_node(node)
        if node == 0:
            walking = 0
    return total / (4.0 * wp.pi)


@wp.func
def _num_open(inside: wp.array[wp.int8], first: int, side: int) -> int:
    found = int(0)
    for x in range(side):
        for y in range(side):
            for z in range(side):
                if inside[first + x * 64 + y * 8 + z] == wp.int8(_OPEN):
                    found += 1
    return found


@wp.func
def _triangle_bound(a: wp.vec3, b: wp.vec3, c: wp.vec3, reach: float) -> float:
    """Bound on the second order of a triangle's winding number, its value and gradient at the origin being exact."""
    gap = wp.sqrt(_triangle_squared(wp.vec3(0.0), a, b, c)) - reach
    if gap <= 0.0:
        return 1.0
    area = 0.5 * wp.length(wp.cross(b - a, c - a))
    return 3.0 * area * reach * reach / (gap * gap * gap * gap * 4.0 * wp.pi)


@wp.func
def _offset(v: int, side: int) -> int:
    """Of voxel v of a block from the block's first, in its brick."""
    return v // (side * side) * 64 + v // side % side * 8 + v % side


@wp.func
def _from_middle(v: int, side: int) -> wp.vec3:
    return wp.vec3(float(v // (side * side)), float(v // side % side), float(v % side)) - wp.vec3(float(side - 1) * 0.5)


@wp.func
def _add_near(
    near: _PerVoxel, a: wp.vec3d, b: wp.vec3d, c: wp.vec3d, inside: wp.array[wp.int8], first: int, side: int
) -> _PerVoxel:
    """Adds the triangle's solid angle at every open voxel."""
    sums = near
    for v in range(side * side * side):
        if inside[first + _offset(v, side)] == wp.int8(_OPEN):
            e = wp.vec3d(_from_middle(v, side))
            sums[v] = sums[v] + _solid_angle(a - e, b - e, c - e)  # type: ignore[index]
    return sums


@wp.func
def _decide_open(
    total: float,
    gradient: wp.vec3,
    error: float,
    near: _PerVoxel,
    whole: wp.array[wp.int32],
    first: int,
    side: int,
    inside: wp.array[wp.int8],
) -> None:
    for v in range(side * side * side):
        i = first + _offset(v, side)
        here = total + wp.dot(gradient, _from_middle(v, side))
        if side <= _SHARED_SIDE:
            here += near[v]  # type: ignore[index]
        beyond = wp.abs(float(whole[i]) - here / (4.0 * wp.pi)) - 0.5
        if inside[i] == wp.int8(_OPEN) and wp.abs(beyond) > error:
            inside[i] = wp.int8(wp.where(beyond > 0.0, 1, 0))


@wp.kernel
def _decide_blocks(
    side: int,
    bricks: wp.array[wp.vec3i],
    nudge: wp.vec3d,
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    shape: wp.array[wp.vec3],
    num_inner: int,
    whole: wp.array[wp.int32],
    inside: wp.array[wp.int8],
) -> None:
    """Decides what is open and can be decided in one block of `side` voxels a side."""
    block = wp.tid()
    blocks = 8 // side
    row = block // (blocks * blocks * blocks)
    corner = wp.vec3i(block // (blocks * blocks) % blocks, block // blocks % blocks, block % blocks) * side
    first = row * 512 + corner[0] * 64 + corner[1] * 8 + corner[2]
    if _num_open(inside, first, side) == 0:
        return
    half = wp.float64(side) * wp.float64(0.5)
    q = wp.vec3d(bricks[row] * 8 + corner) + wp.vec3d(half, half, half) + nudge
    if side == 1:
        winding = _winding_number(q, corners, leaf_starts, centre, vector_area, shape, num_inner)
        inside[first] = wp.int8(wp.where(wp.abs(float(whole[first]) - winding) > 0.5, 1, 0))
        return
    reach = float(side - 1) * 0.5 * wp.sqrt(3.0)
    # Solid angle in the middle, its gradient, a bound on the error of both together, and what near triangles add.
    total = float(0.0)
    gradient = wp.vec3(0.0)
    error = float(0.0)
    near = _PerVoxel()
    q32 = wp.vec3(q)
    node = int(0)
    walking = int(1)
    while walking == 1:
        to_group = centre[node] - q32
        far = wp.length(to_group)
        bound = _bound(shape[node], far, reach)
        if bound <= _SHARED_ERROR:
            total += _dipole(vector_area[node], to_group, far)
            gradient += _dipole_gradient(vector_area[node], to_group, far)
            error += bound
            node = _next_node(node)
        elif node < num_inner:
            node = 2 * node + 1
        else:
            for t in range(leaf_starts[node - num_inner], leaf_starts[node - num_inner + 1]):
                a = corners[t * 3] - q
                b = corners[t * 3 + 1] - q
                c = corners[t * 3 + 2] - q
                bound = _triangle_bound(wp.vec3(a), wp.vec3(b), wp.vec3(c), reach)
                if bound <= _SHARED_ERROR:
                    total += _solid_angle(a, b, c)
                    gradient += _solid_angle_gradient(wp.vec3(a), wp.vec3(b), wp.vec3(c))
                    error += bound
                elif side > _SHARED_SIDE:
                    error += 1.0
                else:
                    near = _add_near(near, a, b, c, inside, first, side)
            node = _next_node(node)
        walking = wp.where(node == 0, 0, wp.where(error >= 0.5, 0, 1))
    if error >= 0.5:
        return
    _decide_open(total, gradient, error, near, whole, first, side, inside)


@wp.kernel
def _wind_points(
    points: wp.array[wp.vec3d],
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    shape: wp.array[wp.vec3],
    num_inner: int,
    winding: wp.array[wp.float32],
) -> None:
    i = wp.tid()
    winding[i] = _winding_number(points[i], corners, leaf_starts, centre, vector_area, shape, num_inner)
