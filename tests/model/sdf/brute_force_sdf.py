"""Distance and winding number the slow way: every point against every triangle, in float64, without any shortcut."""

import numpy as np
from jaxtyping import Float, Int
from trimesh.triangles import closest_point


def grid_points(resolution: int) -> Float[np.ndarray, "num_voxels 3"]:
    """All voxel centres in the cube, C order."""
    axis = (np.arange(resolution) + 0.5) * 2 / resolution - 1
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def normalised(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> Float[np.ndarray, "num_faces 3 3"]:
    """Triangles with the centre of their bounding box at 0 and its longest side 1.9."""
    low, high = vertices[faces].min((0, 1)), vertices[faces].max((0, 1))
    return (vertices[faces] - (low + high) / 2) * 1.9 / (high - low).max()


def distances(
    points: Float[np.ndarray, "num_points 3"], triangles: Float[np.ndarray, "num_faces 3 3"]
) -> Float[np.ndarray, " num_points"]:
    nearest = np.full(len(points), np.inf)
    for triangle in triangles:
        gap = closest_point(np.broadcast_to(triangle, (len(points), 3, 3)), points) - points
        nearest = np.minimum(nearest, np.linalg.norm(gap, axis=1))
    return nearest


def winding_numbers(
    points: Float[np.ndarray, "num_points 3"], triangles: Float[np.ndarray, "num_faces 3 3"]
) -> Float[np.ndarray, " num_points"]:
    total = np.zeros(len(points))
    for triangle in triangles:
        a, b, c = (corner - points for corner in triangle)
        la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
        below = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        total += 2 * np.arctan2((a * np.cross(b, c)).sum(1), below)
    return total / (4 * np.pi)
