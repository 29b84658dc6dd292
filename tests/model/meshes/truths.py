"""Shapes with known area, volume and bounds, and what a mesh has of these."""

from typing import NamedTuple

import numpy as np
import pytest

from model.meshes import Mesh

BOX = np.array([[x, y, z] for z in (0.0, 3) for y in (0.0, 2) for x in (0.0, 1)])  # 1 by 2 by 3
QUADS = [(0, 2, 3, 1), (4, 5, 7, 6), (0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5)]  # its sides, outward
TRIANGLES = [triangle for a, b, c, d in QUADS for triangle in ((a, b, c), (a, c, d))]
# A prism over a letter C, one unit high: outlines of caps with eight corners, two of them pointing inward.
C_OUTLINE = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (3, 3), (3, 4), (0, 4)]


class Truth(NamedTuple):
    area: float
    volume: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]


BOX_TRUTH = Truth(22, 6, (0, 0, 0), (1, 2, 3))
TWO_BOXES = Truth(44, 12, (0, 0, 0), (6, 2, 3))  # the second 5 to the right
C_TRUTH = Truth(34, 8, (0, 0, 0), (3, 4, 1))


def prism(outline: list[tuple[float, float]], first: int = 0) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """Vertices and polygons of a prism one unit high over a counterclockwise outline; caps begin at a given corner."""
    n = len(outline)
    vertices = np.array([(x, y, z) for z in (0.0, 1.0) for x, y in outline])
    ring = [(first + i) % n for i in range(n)]
    caps = [tuple(ring[::-1]), tuple(n + i for i in ring)]
    return vertices, caps + [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]


def truth_of(mesh: Mesh) -> Truth:
    """What a mesh has: its volume by the divergence theorem."""
    a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
    scaled = np.cross(b - a, c - a)
    volume = np.einsum("ij,ij->", a, scaled) / 6
    used = mesh.vertices[np.unique(mesh.faces)]
    return Truth(np.linalg.norm(scaled, axis=1).sum() / 2, volume, tuple(used.min(0)), tuple(used.max(0)))


def assert_truth(mesh: Mesh, truth: Truth, tolerance: float = 1e-5) -> None:
    found = truth_of(mesh)
    assert found.area == pytest.approx(truth.area, abs=tolerance)
    assert found.volume == pytest.approx(truth.volume, abs=tolerance)
    assert found.low == pytest.approx(truth.low, abs=tolerance)
    assert found.high == pytest.approx(truth.high, abs=tolerance)
