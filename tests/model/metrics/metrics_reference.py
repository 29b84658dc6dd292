"""The figures of model.metrics a second time, by the definitions alone: loops and full tables of distances.

Nothing is shared with model.metrics: own sampler (reflected barycentric coordinates), own neighbours (every pair), own
inside test (crossings of a ray).
"""

from typing import NamedTuple

import numpy as np


class Samples(NamedTuple):
    points: np.ndarray  # [N, 3]
    normals: np.ndarray  # [N, 3]


def sample(vertices: np.ndarray, faces: np.ndarray, num_points: int, seed: int) -> Samples:
    rng = np.random.default_rng(seed)
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    normals = np.cross(b - a, c - a)
    areas = np.sqrt((normals**2).sum(1)) / 2
    chosen = rng.choice(len(faces), num_points, p=areas / areas.sum())
    u, v = rng.random((2, num_points, 1))
    beyond = u + v > 1
    u, v = np.where(beyond, 1 - u, u), np.where(beyond, 1 - v, v)
    points = a[chosen] + u * (b - a)[chosen] + v * (c - a)[chosen]
    return Samples(points, (normals / (2 * areas[:, None]))[chosen])


def nearest(points: np.ndarray, to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances, rows = [], []
    for chunk in np.array_split(points, max(1, len(points) // 50)):
        x, y, z = (np.subtract.outer(chunk[:, k], to[:, k]) for k in range(3))
        table = x * x + y * y + z * z
        rows.append(table.argmin(1))
        distances.append(np.sqrt(table.min(1)))
    return np.concatenate(distances), np.concatenate(rows)


def geometry(pred: Samples, truth: Samples, thresholds: tuple[float, ...]) -> dict[str, float]:
    to_truth, row = nearest(pred.points, truth.points)
    to_pred, true_row = nearest(truth.points, pred.points)
    figures = {
        "accuracy_l1": to_truth.mean(),
        "completeness_l1": to_pred.mean(),
        "cd_l1": (to_truth.mean() + to_pred.mean()) / 2,
        "cd_l2": (to_truth**2).mean() + (to_pred**2).mean(),
    }
    cosines = [
        np.array([n @ m for n, m in zip(pred.normals, truth.normals[row], strict=True)]),
        np.array([n @ m for n, m in zip(truth.normals, pred.normals[true_row], strict=True)]),
    ]
    figures["normal_consistency"] = (cosines[0].mean() + cosines[1].mean()) / 2
    figures["normal_consistency_absolute"] = (np.abs(cosines[0]).mean() + np.abs(cosines[1]).mean()) / 2
    for t in thresholds:
        precision, recall = (to_truth < t).mean(), (to_pred < t).mean()
        figures[f"precision_{t:g}"], figures[f"recall_{t:g}"] = precision, recall
        figures[f"fscore_{t:g}"] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return figures


def inside(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """By the number of faces that a ray crosses (Möller and Trumbore 1997)."""
    direction = np.array([0.5377, 0.2113, 0.8163])  # along no edge of the test shapes
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    across = np.cross(direction, c - a)
    scale = ((b - a) * across).sum(1)
    # Each is a triple product, of point - a and of two vectors that are the same for all points.
    u, v, t = (
        (points @ product.T - (a * product).sum(1)) / scale
        for product in (across, np.cross(b - a, direction), np.cross(b - a, c - a))
    )
    crossings = ((u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0)).sum(1)
    return crossings % 2 == 1


def volume_iou(pred: tuple, truth: tuple, num_points: int, seed: int) -> float:
    """Over uniform points of the whole cube."""
    points = np.random.default_rng(seed).random((num_points, 3)) * 2 - 1
    a, b = inside(points, *pred), inside(points, *truth)
    return (a & b).sum() / (a | b).sum()


def surface_iou(pred: tuple, truth: tuple, num_points: int, seed: int, noise: tuple[float, float]) -> float:
    rng = np.random.default_rng(seed)
    points = sample(*truth, num_points, seed + 1).points
    points = points + rng.normal(size=points.shape) * rng.uniform(*noise, size=(num_points, 1))
    a, b = inside(points, *pred), inside(points, *truth)
    return (a & b).sum() / (a | b).sum()


def far_share(pred: Samples, truth: tuple[np.ndarray, np.ndarray], limit: float) -> float:
    """Share of predicted points farther than `limit` from every face (Ericson 2005, section 5.1.5)."""
    return float(np.mean([min(point_to_triangle(p, t) for t in truth[0][truth[1]]) > limit for p in pred.points]))


def point_to_triangle(p: np.ndarray, triangle: np.ndarray) -> float:
    a, b, c = triangle
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    foot = p - ((p - a) @ normal) * normal
    sides = [np.cross(e - s, foot - s) @ normal for s, e in ((a, b), (b, c), (c, a))]
    if min(sides) >= 0:
        return abs((p - a) @ normal)
    return min(point_to_segment(p, s, e) for s, e in ((a, b), (b, c), (c, a)))


def point_to_segment(p: np.ndarray, start: np.ndarray, end: np.ndarray) -> float:
    along = np.clip((p - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
    return float(np.linalg.norm(p - start - along * (end - start)))
