"""Triangles cover a polygon exactly, whatever its shape, and end where it ends."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.meshes.polygons import Polygons, triangulate
from model.meshes.raw import told

Points = np.ndarray


def one(points: Points) -> tuple[np.ndarray, tuple[str, ...]]:
    """Faces and notes of a single polygon."""
    n = len(points)
    faces, notes = triangulate(points, Polygons(np.arange(n), np.array([n])))
    return faces, told(notes)


def border(faces: np.ndarray) -> Counter:
    """Directed edges, less those that run back."""
    edges = Counter((int(a), int(b)) for t in faces for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0])))
    return Counter({(a, b): count - edges[b, a] for (a, b), count in edges.items() if count > edges[b, a]})


def areas(points: Points, faces: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Of each face, negative where it is wound against the normal."""
    a, b, c = points[faces].transpose(1, 0, 2)
    return np.cross(b - a, c - a) @ normal / 2


def placed(outline: np.ndarray, seed: int) -> tuple[Points, np.ndarray]:
    """A plane outline somewhere in space, and the normal about which it runs counterclockwise."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return np.pad(outline, ((0, 0), (0, 1))) @ turn + rng.normal(size=3), turn[2] * np.linalg.det(turn)


@st.composite
def simple_outlines(draw: st.DrawFn) -> np.ndarray:
    """Star-shaped about the origin, with corners that point inward and some on straight edges, from any corner on."""
    n = draw(st.integers(3, 12))
    radii = np.array(draw(st.lists(st.floats(0.05, 1), min_size=n, max_size=n)))
    angles = (np.arange(n) + np.array(draw(st.lists(st.floats(0, 0.9), min_size=n, max_size=n)))) * (2 * np.pi / n)
    outline = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    for i in sorted(draw(st.sets(st.integers(0, n - 1), max_size=3)), reverse=True):
        outline = np.insert(outline, i + 1, (outline[i] + outline[(i + 1) % n]) / 2, axis=0)
    return np.roll(outline, draw(st.integers(0, len(outline) - 1)), axis=0)


@settings(max_examples=300, deadline=None)
@given(simple_outlines(), st.integers(0, 9))
def test_a_simple_polygon_is_covered_once_and_keeps_its_border(outline: np.ndarray, seed: int) -> None:
    points, normal = placed(outline, seed)
    faces, notes = one(points)
    x, y = outline.T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2
    parts = areas(points, faces, normal)
    if area < 0 or (len(outline) == 3):  # a triangle, or an outline that does not go around the origin
        return
    assert len(faces) == len(points) - 2
    assert border(faces) == Counter((i, (i + 1) % len(points)) for i in range(len(points)))
    assert parts.sum() == pytest.approx(area)
    if not notes:
        assert parts.min() > -1e-9


@pytest.mark.parametrize("first", range(10))
def test_stars_are_cut_from_any_corner(first: int) -> None:
    angles = np.arange(10) * np.pi / 5
    outline = np.where(np.arange(10) % 2, 1.0, 0.3)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    points, normal = placed(np.roll(outline, first, axis=0), first)
    faces, notes = one(points)
    assert notes == ()
    assert areas(points, faces, normal).min() > 0
    assert areas(points, faces, normal).sum() == pytest.approx(10 * 0.3 * np.sin(np.pi / 5) / 2)


def test_corners_on_a_straight_edge_stay_in_the_border() -> None:
    """A neighbour has them too: without them there would be a slit."""
    outline = np.array([(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (1, 1), (1, 2), (1, 3), (3, 3), (3, 4), (0, 4), (0, 2)])
    for first in range(len(outline)):
        points, normal = placed(np.roll(outline, first, axis=0).astype(float), first)
        faces, notes = one(points)
        assert notes == ()
        assert len(faces) == len(points) - 2
        assert border(faces) == Counter((i, (i + 1) % len(points)) for i in range(len(points)))
        assert areas(points, faces, normal).sum() == pytest.approx(8)


def test_a_hole_joined_to_the_outline_by_a_slit_is_left_open() -> None:
    outer = [(0, 0), (4, 0), (4, 4), (0, 4)]
    inner = [(1, 1), (1, 3), (3, 3), (3, 1)]
    outline = np.array([*outer, outer[0], *inner, inner[0]], float)
    points, normal = placed(outline, 0)
    faces, notes = one(points)
    assert notes == ()
    assert areas(points, faces, normal).sum() == pytest.approx(12)
    assert areas(points, faces, normal).min() > -1e-12


def test_a_polygon_out_of_its_plane_is_cut_in_its_mean_plane() -> None:
    outline = np.array([(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (3, 3), (3, 4), (0, 4)], float)
    points = np.column_stack([outline, 0.2 * np.sin(3 * outline.sum(1))])
    faces, notes = one(points)
    assert notes == ()
    assert areas(points, faces, np.array([0.0, 0, 1])).sum() == pytest.approx(8)
    assert areas(points, faces, np.array([0.0, 0, 1])).min() > 0


@pytest.mark.parametrize(
    "outline",
    [
        [(0, 0), (1, 1), (1, 0), (0, 1)],
        [(0, 0), (2, 2), (2, 0), (0, 1)],
        [(np.cos(k * 4 * np.pi / 5), np.sin(k * 4 * np.pi / 5)) for k in range(5)],
        [(np.cos(k * 4 * np.pi / 9), np.sin(k * 4 * np.pi / 9)) for k in range(9)],
    ],
    ids=["bow tie", "uneven bow tie", "pentagram", "around twice"],
)
def test_a_polygon_that_crosses_itself_is_cut_from_its_first_corner_and_noted(outline: list) -> None:
    points, _ = placed(np.array(outline, float), 3)
    faces, notes = one(points)
    assert faces.tolist() == [[0, i, i + 1] for i in range(1, len(points) - 1)]
    assert notes == ("polygons that cross themselves, cut from their first corner: 1",)


def test_a_flat_line_has_no_area_and_no_note() -> None:
    faces, notes = one(np.array([(0, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)], float))
    assert len(faces) == 2
    assert notes == ()


def test_faces_come_in_the_order_of_their_polygons() -> None:
    points = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 2, 0)], float)
    polygons = Polygons(np.array([0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 4, 3, 0, 1, 0, 1, 3]), np.array([3, 4, 5, 2, 3]))
    faces, notes = triangulate(points, polygons)
    assert faces.tolist()[:3] == [[0, 1, 2], [0, 1, 2], [0, 2, 3]]
    assert faces.tolist()[-1] == [0, 1, 3]
    assert len(faces) == 1 + 2 + 3 + 1
    assert told(notes) == ("points and edges among the faces ignored: 1",)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", range(6))
def test_all_triangles_of_a_polygon_that_is_not_finite_have_its_bad_corner(bad: float, where: int) -> None:
    points, _ = placed(np.array([(0, 0), (2, 0), (2, 2), (1, 1), (0, 2), (0, 1)], float), 0)
    points[where, 1] = bad
    faces, _ = one(points)
    assert len(faces) == 4
    assert (faces == where).any(1).all()


def test_the_size_of_coordinates_does_not_matter() -> None:
    outline = np.array([(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (3, 3), (3, 4), (0, 4)], float)
    points, _ = placed(outline, 0)
    expected, _ = one(points)
    for scale in (1e-30, 1e-9, 1e9, 1e30):
        faces, notes = one(points * scale)
        assert notes == ()
        assert np.array_equal(faces, expected)
