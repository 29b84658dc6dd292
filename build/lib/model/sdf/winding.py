"""The generalised winding number of a triangle soup: the sum of its solid angles over 4 pi (Jacobson et al. 2013).

Far groups of triangles count as one dipole (Barill et al. 2018, first order), so that a query costs the logarithm of
the mesh.
"""

from typing import NamedTuple

import numpy as np
import warp as wp
from jaxtyping import Float, Int

from model.sdf.distance import BRICK_VOXELS

wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile

_FAR = 2.5  # a group is one dipole from this many of its radii on
_TRIANGLES_A_LEAF = 4


class WindingTree(NamedTuple):
    """A complete binary tree over triangles in Morton order; children of node i are 2i + 1 and 2i + 2."""

    corners: wp.array  # vec3d, three per triangle
    leaf_starts: wp.array  # int32, first triangle of every leaf, and the end
    centre: wp.array  # vec3 per node, area-weighted
    vector_area: wp.array  # vec3 per node: sum of area times normal
    far2: wp.array  # float32 per node: squared distance from which the dipole is used
    num_inner: int


def winding_numbers(
    points: Float[np.ndarray, "num_points 3"], triangles: Float[np.ndarray, "num_faces 3 3"], *, device: str
) -> Float[np.ndarray, " num_points"]:
    """Winding number at each point: 1 inside and 0 outside of a closed mesh whose normals point outward."""
    winding = wp.zeros(len(points), dtype=wp.float32, device=device)
    where = wp.array(np.ascontiguousarray(points, np.float64), dtype=wp.vec3d, device=device)
    wp.launch(_wind_points, len(points), inputs=[where, *build_tree(triangles, device=device), winding], device=device)
    return winding.numpy()


def brick_winding_numbers(
    triangles: Float[np.ndarray, "num_faces 3 3"],
    brick_coords: Int[np.ndarray, "num_bricks 3"],
    *,
    nudge: Float[np.ndarray, "3"],
    device: str,
) -> Float[np.ndarray, "num_bricks 8 8 8"]:
    """Winding number at every voxel centre plus `nudge`; triangles in voxels."""
    winding = wp.zeros(len(brick_coords) * BRICK_VOXELS, dtype=wp.float32, device=device)
    bricks = wp.array(brick_coords, dtype=wp.vec3i, device=device)
    inputs = [bricks, wp.vec3d(*nudge), *build_tree(triangles, device=device), winding]
    wp.launch(_wind_bricks, len(winding), inputs=inputs, device=device)
    return winding.numpy().reshape(-1, 8, 8, 8)


def build_tree(triangles: Float[np.ndarray, "num_faces 3 3"], *, device: str) -> WindingTree:
    triangles = triangles[_morton_order(triangles.mean(1))]
    depth = max(int(np.log2(max(len(triangles) // _TRIANGLES_A_LEAF, 1))), 0)
    starts = np.arange(2**depth + 1) * len(triangles) // 2**depth

    vector_area = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]) / 2
    area = np.linalg.norm(vector_area, axis=1, keepdims=True) + 1e-12  # keeps the centre of flat groups defined
    level = [
        np.add.reduceat(np.hstack([area, area * triangles.mean(1), vector_area]), starts[:-1]),
        np.minimum.reduceat(triangles.min(1), starts[:-1]),
        np.maximum.reduceat(triangles.max(1), starts[:-1]),
    ]
    levels = [level]
    for _ in range(depth):
        sums, low, high = (part.reshape(-1, 2, part.shape[1]) for part in levels[0])
        levels.insert(0, [sums.sum(1), low.min(1), high.max(1)])
    sums, low, high = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    centre = sums[:, 1:4] / sums[:, :1]
    radius2 = (np.maximum(high - centre, centre - low) ** 2).sum(1)

    def send(values: np.ndarray, dtype: type) -> wp.array:
        return wp.array(np.ascontiguousarray(values), dtype=dtype, device=device)

    return WindingTree(
        corners=send(triangles.reshape(-1, 3), wp.vec3d),
        leaf_starts=send(starts.astype(np.int32), wp.int32),
        centre=send(centre.astype(np.float32), wp.vec3),
        vector_area=send(sums[:, 4:].astype(np.float32), wp.vec3),
        far2=send((_FAR**2 * radius2).astype(np.float32), wp.float32),
        num_inner=2**depth - 1,
    )


def _morton_order(points: Float[np.ndarray, "num_points 3"]) -> Int[np.ndarray, " num_points"]:
    low = points.min(0)
    cells = ((points - low) / max(np.ptp(points, axis=0).max(), 1e-30) * 1023).astype(np.int64)
    bits = (cells[:, :, None] >> np.arange(10)) & 1
    return (bits << (3 * np.arange(10) + np.arange(3)[:, None])).sum((1, 2)).argsort(kind="stable")


@wp.func
def _winding_number(
    q: wp.vec3d,
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    far2: wp.array[wp.float32],
    num_inner: int,
) -> float:
    total = float(0.0)  # solid angle
    q32 = wp.vec3(q)
    node = int(0)
    walking = int(1)
    while walking == 1:
        to_group = centre[node] - q32
        gap2 = wp.dot(to_group, to_group)
        descend = int(0)
        if gap2 > far2[node]:
            total += wp.dot(vector_area[node], to_group) / (gap2 * wp.sqrt(gap2))
        elif node < num_inner:
            descend = 1
        else:
            leaf = node - num_inner
            for t in range(leaf_starts[leaf], leaf_starts[leaf + 1]):
                a = corners[t * 3] - q
                b = corners[t * 3 + 1] - q
                c = corners[t * 3 + 2] - q
                la = wp.length(a)
                lb = wp.length(b)
                lc = wp.length(c)
                # van Oosterom and Strackee 1983
                below = la * lb * lc + wp.dot(a, b) * lc + wp.dot(b, c) * la + wp.dot(c, a) * lb
                # in float64, because its sign says on which side of the triangle the point is
                volume = wp.dot(a, wp.cross(b, c))
                total += 2.0 * float(wp.atan2(volume, below))
        if descend == 1:
            node = 2 * node + 1
        else:
            while node > 0 and node % 2 == 0:  # a right child: its parent is done as well
                node = (node - 1) // 2
            if node == 0:
                walking = 0
            node += 1
    return total / (4.0 * wp.pi)


@wp.kernel
def _wind_bricks(
    bricks: wp.array[wp.vec3i],
    nudge: wp.vec3d,
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    far2: wp.array[wp.float32],
    num_inner: int,
    winding: wp.array[wp.float32],
) -> None:
    i = wp.tid()
    brick = bricks[i // 512]
    half = wp.float64(0.5)
    x = wp.float64(brick[0] * 8 + i // 64 % 8) + half
    y = wp.float64(brick[1] * 8 + i // 8 % 8) + half
    z = wp.float64(brick[2] * 8 + i % 8) + half
    q = wp.vec3d(x, y, z) + nudge
    winding[i] = _winding_number(q, corners, leaf_starts, centre, vector_area, far2, num_inner)


@wp.kernel
def _wind_points(
    points: wp.array[wp.vec3d],
    corners: wp.array[wp.vec3d],
    leaf_starts: wp.array[wp.int32],
    centre: wp.array[wp.vec3],
    vector_area: wp.array[wp.vec3],
    far2: wp.array[wp.float32],
    num_inner: int,
    winding: wp.array[wp.float32],
) -> None:
    i = wp.tid()
    winding[i] = _winding_number(points[i], corners, leaf_starts, centre, vector_area, far2, num_inner)
