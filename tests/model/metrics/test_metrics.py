import numpy as np
import pytest
import trimesh

from model.errors import InputError
from model.meshes import Mesh
from model.metrics import Truth, compare, compare_sdf, summarise
from model.metrics.distances import checked_mesh, sample_surface
from model.metrics.signed_distance import SurfaceQuery
from model.metrics.truth import CUBE_DIAGONAL


def sphere(radius: float) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=4, radius=radius)


def plate(z: float, side: float = 1.0) -> Mesh:
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * [side / 2, side / 2, 0] + [0, 0, z]
    return Mesh(corners, np.array([[0, 1, 2], [0, 2, 3]]))


def test_distance_between_parallel_plates_is_their_gap():
    metrics = compare(plate(0.25), plate(0.0), num_points=20_000, seed=0)
    # nearest samples lie up to ~0.01 aside, which adds 0.01^2 / (2 * 0.25) at most
    assert metrics.accuracy_l1 == pytest.approx(0.25, abs=4e-4)
    assert metrics.completeness_l1 == pytest.approx(0.25, abs=4e-4)
    assert metrics.cd_l1 == pytest.approx(0.25, abs=4e-4)
    assert metrics.cd_l2 == pytest.approx(2 * 0.25**2, abs=4e-4)


def test_concentric_spheres_are_their_difference_in_radius_apart():
    metrics = compare(sphere(0.8), sphere(0.9), num_points=20_000, seed=1)
    assert metrics.cd_l1 == pytest.approx(0.1, abs=2e-3)
    assert metrics.normal_consistency == pytest.approx(1.0, abs=2e-3)


def test_fscore_is_a_step_at_the_distance():
    metrics = compare(plate(0.05), plate(0.0), num_points=50_000, seed=0, thresholds=(0.049, 0.06))
    below, above = metrics.fscores[0.049], metrics.fscores[0.06]
    assert (below.precision, below.recall, below.fscore) == (0, 0, 0)
    assert (above.precision, above.recall, above.fscore) == (1, 1, 1)


def test_precision_and_recall_tell_a_missing_half_from_a_superfluous_one():
    whole, quarter = plate(0.0, side=1.0), plate(0.0, side=0.5)
    missing = compare(quarter, whole, num_points=20_000, seed=0, thresholds=(0.02,)).fscores[0.02]
    assert missing.precision == pytest.approx(1.0, abs=1e-3)
    assert missing.recall == pytest.approx(0.54**2, abs=0.02)  # the quarter and a rim of 0.02 around it
    superfluous = compare(whole, quarter, num_points=20_000, seed=0, thresholds=(0.02,)).fscores[0.02]
    assert superfluous.precision == pytest.approx(0.54**2, abs=0.02)


def test_inside_out_prediction_has_opposite_normals():
    flipped = Mesh(sphere(0.9).vertices, sphere(0.9).faces[:, ::-1])
    metrics = compare(flipped, sphere(0.9), num_points=5_000, seed=0)
    assert metrics.normal_consistency == pytest.approx(-1, abs=0.01)
    assert metrics.normal_consistency_absolute == pytest.approx(1, abs=0.01)


def test_spurious_area_is_the_share_of_surface_far_from_the_truth():
    true = trimesh.creation.box((0.4, 0.4, 0.4))
    ghost = true.copy()
    ghost.apply_translation((0.0, 0.0, 0.7))  # 0.3 of air between them: every point of it is far
    both = trimesh.util.concatenate([true, ghost])
    metrics = compare(both, true, num_points=20_000, seed=0, voxel_size=0.05)
    assert metrics.spurious_area == pytest.approx(0.5, abs=0.01)
    assert compare(true, true, num_points=20_000, seed=0, voxel_size=0.05).spurious_area == 0
    assert compare(true, true, num_points=100, seed=0).spurious_area is None


def test_spurious_area_does_not_depend_on_the_number_of_points():
    """Few samples are far apart; distances to the surface itself must decide, not distances to samples."""
    assert compare(sphere(0.9), sphere(0.9), num_points=50, seed=0, voxel_size=0.01).spurious_area == 0


def test_iou_of_concentric_spheres_is_the_ratio_of_volumes():
    metrics = compare(sphere(0.8), sphere(0.9), num_points=100_000, seed=0)
    assert metrics.volume_iou == pytest.approx((0.8 / 0.9) ** 3, abs=0.02)
    assert compare(sphere(0.9), sphere(0.9), num_points=1000, seed=0).surface_iou == 1


def test_iou_needs_two_closed_surfaces():
    assert compare(plate(0.1), sphere(0.9), num_points=1000, seed=0).volume_iou is None
    assert compare(sphere(0.9), plate(0.1), num_points=1000, seed=0).surface_iou is None


def test_prediction_without_surface_is_the_worst_case_not_a_missing_row():
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), int))
    point = Mesh(np.zeros((3, 3)), np.array([[0, 1, 2]]))
    for pred in (nothing, point):
        metrics = compare(pred, sphere(0.9), num_points=1000, seed=0, voxel_size=0.1)
        assert metrics.failed
        assert metrics.cd_l1 == pytest.approx(CUBE_DIAGONAL)
        assert (metrics.volume_iou, metrics.spurious_area) == (0, 1)
        assert all(score.fscore == 0 for score in metrics.fscores.values())
        assert set(metrics.as_row()) == set(compare(sphere(0.9), sphere(0.9), num_points=10, seed=0).as_row())


def test_the_floor_is_the_sampling_distance_and_falls_with_more_points():
    """Of n random points on area A the mean distance to the nearest is 0.5 sqrt(A / n) (Clark and Evans 1954)."""
    for num_points in (5_000, 20_000):
        floor = compare(sphere(0.9), sphere(0.9), num_points=num_points, seed=0)
        assert floor.cd_l1 == pytest.approx(0.5 * np.sqrt(4 * np.pi * 0.9**2 / num_points), rel=0.03)


def test_same_seed_same_figures():
    first, second, other = (compare(sphere(0.8), sphere(0.9), num_points=1000, seed=s) for s in (3, 3, 4))
    assert first == second
    assert first != other


def test_samples_lie_on_the_surface_by_area():
    box = trimesh.creation.box((2.0, 1.0, 0.5))
    points, normals = sample_surface(checked_mesh(box, "box"), 50_000, np.random.default_rng(0))
    on_face = np.isclose(np.abs(points), [1.0, 0.5, 0.25])
    assert on_face.any(1).all()
    np.testing.assert_allclose(on_face.mean(0), np.array([0.5, 1.0, 2.0]) / 3.5, atol=0.01)
    assert np.allclose(points[on_face], 0.5 * np.array([2.0, 1.0, 0.5])[np.nonzero(on_face)[1]] * normals[on_face])


def test_truth_without_surface_and_broken_meshes_are_refused():
    with pytest.raises(InputError, match="no face with an area"):
        Truth(Mesh(np.zeros((0, 3)), np.zeros((0, 3), int)), num_points=10, seed=0)
    broken = plate(0.0).vertices.copy()
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match="predicted mesh has 1 vertices that are not finite"):
        compare(Mesh(broken, plate(0.0).faces), plate(0.0), num_points=10, seed=0)
    with pytest.raises(InputError, match="expected 0 to 3"):
        compare(Mesh(plate(0.0).vertices, np.array([[0, 1, 4]])), plate(0.0), num_points=10, seed=0)
    quads = np.array([[0, 1, 2, 3]] * 3)  # as many numbers as four triangles
    with pytest.raises(InputError, match=r"faces \[3, 4\]; expected \[N, 3\] and \[M, 3\]"):
        compare((plate(0.0).vertices, quads), plate(0.0), num_points=10, seed=0)


@pytest.mark.parametrize("winding", [1, -1])
def test_side_and_distance_of_points_around_a_sphere(winding: int):
    ball = sphere(0.5)
    query = SurfaceQuery(ball.vertices, ball.faces[:, ::winding])
    points = np.array([[0, 0, 0], [0.3, 0, 0], [0.6, 0, 0], [0, 0.9, 0.9]])
    assert query.inside(points).tolist() == [True, True, False, False]
    np.testing.assert_allclose(query.distance(points), np.abs(np.linalg.norm(points, axis=1) - 0.5), atol=2e-3)


def test_overlapping_solids_count_as_their_union():
    left, right = trimesh.creation.box((1, 1, 1)), trimesh.creation.box((1, 1, 1))
    right.apply_translation((0.5, 0, 0))
    query = SurfaceQuery(*_arrays(trimesh.util.concatenate([left, right])))
    assert query.inside(np.array([[0.25, 0, 0], [0.75, 0, 0], [1.2, 0, 0]])).tolist() == [True, True, False]


def _arrays(mesh: trimesh.Trimesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.vertices, mesh.faces


def test_field_errors_against_hand_counted_voxels():
    true_coords = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 3]])
    true_sdf = np.array([-0.5, -0.1, 0.1, 0.5])
    coords = np.array([[0, 0, 2], [5, 0, 0], [0, 0, 1], [0, 0, 0]])
    sdf = np.array([0.3, 0.8, 0.1, -1.0])
    metrics = compare_sdf(coords, sdf, true_coords, true_sdf)
    assert metrics.sdf_l1 == pytest.approx((0.2 + 0.2 + 0.5) / 3)
    assert metrics.sign_errors == pytest.approx(1 / 3)
    assert metrics.band_precision == pytest.approx(2 / 3)  # (0,0,2), (0,0,1) of them and (5,0,0)
    assert metrics.band_recall == pytest.approx(2 / 4)


def test_summary_of_known_values():
    summary = summarise([*map(float, range(1, 101)), None], seed=0)
    assert summary is not None
    assert (summary.mean, summary.median, summary.num_shapes) == (50.5, 50.5, 100)
    assert summary.p95 == pytest.approx(95.05)
    half = 1.96 * np.std(range(1, 101)) / 10  # the bootstrap approaches the normal interval
    assert (summary.mean - summary.ci_low, summary.ci_high - summary.mean) == pytest.approx((half, half), rel=0.1)
    assert summarise([None, None], seed=0) is None
    with pytest.raises(ValueError, match="1 of 2 values"):
        summarise([1.0, float("nan")], seed=0)
