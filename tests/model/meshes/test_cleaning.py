"""What is dropped while cleaning, and that all else stays as it was."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.meshes import is_closed
from model.meshes.cleaning import clean
from model.meshes.mesh import number_rows
from model.meshes.raw import runs
from tests.model.meshes.truths import BOX, TRIANGLES

FACES = np.array(TRIANGLES)


def merged_by_sorting(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of 1e-8 of the size, in order, each with its first corner's coordinates: by numpy.unique of rows."""
    used = vertices[faces.reshape(-1)]
    low, size = used.min(0), np.ptp(used, axis=0).max()
    places = np.rint((used - low) / (size or 1) * 1e8).astype(np.int64)
    _, first, index = np.unique(places, axis=0, return_index=True, return_inverse=True)
    merged = index.reshape(-1, 3)
    return used[first], merged[(merged != np.roll(merged, 1, 1)).all(1)]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 60), st.sampled_from([np.float32, np.float64]))
def test_vertices_are_merged_as_by_sorting_their_places(seed: int, num: int, num_faces: int, dtype: type) -> None:
    """Also where places are on one line, almost the same, or far from the origin."""
    rng = np.random.default_rng(seed)
    vertices = rng.integers(-3, 4, (num, 3)) * rng.choice([1.0, 1e-9, 1e-8, 1e7], 3) + rng.choice(
        [0, 1e3]
    ) * rng.normal(size=3)
    vertices = (vertices + rng.choice([0, 1e-9]) * rng.normal(size=(num, 3))).astype(dtype)
    faces = rng.integers(0, num, (num_faces, 3))
    places, triangles = merged_by_sorting(vertices.astype(np.float64), faces)
    if len(triangles) == 0:
        with pytest.raises(InputError, match="no area"):
            clean(vertices, faces)
        return
    mesh = clean(vertices, faces)
    assert np.array_equal(mesh.vertices, places)
    kept = {tuple(face) for face in np.sort(triangles, 1).tolist()}
    assert {tuple(face) for face in np.sort(mesh.faces, 1).tolist()} == kept


def test_what_is_dropped_is_noted() -> None:
    vertices = np.vstack([BOX, [[np.nan, 0, 0], [0, np.inf, 0], [7, 7, 7]]])
    faces = np.vstack([FACES, [[0, 1, 8], [2, 3, 9]], FACES[:1, [0, 0, 1]], FACES[3:5, [1, 2, 0]]])
    mesh = clean(vertices, faces, {"said before": 1})
    assert mesh.notes == (
        "said before: 1",
        "faces with NaN or infinite vertices dropped: 2",
        "faces without three different corners dropped: 1",
        "repeated faces dropped: 2",
    )
    assert mesh.num_dropped == 5
    assert len(mesh.vertices) == 8
    assert np.array_equal(mesh.vertices[mesh.faces], BOX[FACES])


def test_a_double_sided_mesh_becomes_one_side_and_the_sides_of_a_wall_stay() -> None:
    both = clean(BOX, np.vstack([FACES, FACES[:, ::-1]]))
    assert both.notes == ("second sides of a double-sided mesh dropped: 12",)
    assert np.array_equal(both.vertices[both.faces], BOX[FACES])
    wall = clean(BOX, np.vstack([FACES, FACES[:1, ::-1]]))
    assert (len(wall.faces), wall.notes) == (13, ())


def test_the_first_of_repeated_faces_stays_in_its_place() -> None:
    faces = np.vstack([FACES[:2], FACES[:1], FACES[2:], FACES[:2, [2, 0, 1]]])
    mesh = clean(BOX, faces)
    assert np.array_equal(mesh.vertices[mesh.faces], BOX[FACES])


def test_too_many_vertices_for_one_number_of_63_bits() -> None:
    """Above 2^21 vertices three of their numbers don't fit into 64 bits."""
    n = 2**21 // 3 + 10
    vertices = np.random.default_rng(0).random((3 * n, 3), np.float32)
    faces = np.arange(3 * n).reshape(-1, 3)
    mesh = clean(vertices, np.vstack([faces, faces[5:6, [1, 2, 0]], faces[7:8, ::-1]]))
    assert len(mesh.vertices) > 2**21
    assert mesh.notes == ("repeated faces dropped: 1",)


@pytest.mark.parametrize(
    ("vertices", "reason"),
    [
        (BOX * 0, "12 faces have no area"),
        (np.where(BOX == 1, np.nan, BOX), "10 of 12 faces have NaN"),
        (np.where(BOX > 0, 1e308, -1e308), "too large"),
    ],
)
def test_what_is_left_must_be_a_mesh(vertices: np.ndarray, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        clean(vertices, FACES)


def test_minus_zero_is_zero() -> None:
    assert (
        len(clean(np.vstack([BOX, [[-0.0, -0.0, 0]]]), np.vstack([FACES[:-1], FACES[-1:] * [1, 1, 1]])).vertices) == 8
    )
    number, first = number_rows(np.array([[0.0, 1, 2], [-0.0, 1, 2], [3, 4, 5], [0, 1, 2]]))
    assert (number.tolist(), first.tolist()) == ([0, 0, 1, 0], [0, 2])


def test_runs() -> None:
    assert runs(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]
    assert runs(np.zeros(0, int), np.zeros(0, int)).tolist() == []


def test_closed_means_that_edges_run_both_ways_equally_often() -> None:
    assert is_closed(BOX, FACES)
    assert is_closed(BOX, FACES[:, ::-1])
    assert is_closed(BOX[FACES].reshape(-1, 3), np.arange(36).reshape(-1, 3))  # vertices of an STL are never shared
    assert not is_closed(BOX, FACES[1:])
    assert not is_closed(BOX, np.vstack([FACES[1:], FACES[:1, ::-1]]))  # wound against its neighbours
    assert not is_closed(BOX, FACES[:0])
    touching = np.concatenate([BOX, BOX + np.array([1, 2, 0])])  # along an edge, where four faces meet
    both = clean(touching, np.vstack([FACES, FACES + 8]))
    assert len(both.vertices) == 14
    assert both.is_closed
