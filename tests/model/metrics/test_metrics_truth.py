"""model.metrics against closed forms, and against a second implementation of every definition."""

import numpy as np
import pytest
import trimesh
from scipy.integrate import quad
from scipy.stats import ncx2

from model.meshes import Mesh
from model.metrics import compare, compare_sdf, summarise_change
from model.metrics.distances import sample_surface
from model.metrics.iou import IOU_NOISE
from tests.model.metrics import metrics_reference as reference

THRESHOLDS = (0.001, 0.005, 0.01, 0.02, 0.05)


def cube(side: float, shift: float = 0.0) -> Mesh:
    box = trimesh.creation.box((side, side, side))
    return Mesh(box.vertices + np.array([shift, 0, 0]), box.faces)


def mesh(shape: trimesh.Trimesh, *, inside_out: bool = False) -> Mesh:
    return Mesh(shape.vertices, shape.faces[:, ::-1] if inside_out else shape.faces)


def arrays(shape: Mesh) -> tuple[np.ndarray, np.ndarray]:
    return shape.vertices, shape.faces


def sphere(radius: float) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=5, radius=radius)  # its volume is 0.1 % short of the ball's


@pytest.mark.parametrize("gap", [0.05, 0.1])
def test_two_spheres(gap: float):
    """Every point of either is exactly `gap` from the other: CD-L1 is gap and CD-L2 is 2 gap².

    Sampling adds at most (spacing)² / (2 gap), with 100 000 points 0.5 % and 0.1 %.
    """
    metrics = compare(sphere(0.9 - gap), sphere(0.9), num_points=100_000, seed=0, thresholds=(0.9 * gap, 1.1 * gap))
    assert metrics.accuracy_l1 == pytest.approx(gap, rel=0.01)
    assert metrics.completeness_l1 == pytest.approx(gap, rel=0.01)
    assert metrics.cd_l1 == pytest.approx(gap, rel=0.01)
    assert metrics.cd_l2 == pytest.approx(2 * gap**2, rel=0.015)
    assert metrics.normal_consistency == pytest.approx(1, abs=0.002)
    assert [score.fscore for score in metrics.fscores.values()] == [0, 1]
    assert metrics.volume_iou == pytest.approx(((0.9 - gap) / 0.9) ** 3, rel=0.01)


def test_surface_iou_of_two_spheres():
    """A point of the sphere of radius R, moved by Gaussian noise s, has (radius / s)² ~ noncentral chi² (3, (R / s)²).

    With 10 000 points, 5 300 of them in either ball, the standard error is 0.0065.
    """
    R, r = 0.9, 0.87

    def share_within(radius: float) -> float:
        low, high = IOU_NOISE
        return quad(lambda s: ncx2.cdf((radius / s) ** 2, 3, (R / s) ** 2), low, high)[0] / (high - low)

    metrics = compare(sphere(r), sphere(R), num_points=100_000, seed=0)
    assert metrics.surface_iou == pytest.approx(share_within(r) / share_within(R), abs=3 * 0.0065)


@pytest.mark.parametrize("delta", [0.1, 0.2])
def test_cube_and_its_copy_moved_by_delta(delta: float):
    """Side s. Of the moved surface: the front, s² at distance delta; the back, inside the cube, at the nearer of delta
    and its own border; of the four sides a strip delta wide at delta / 2 on average, the rest at 0.

    Where the surfaces coincide, samples are still 0.5 sqrt(area / points) apart (Clark and Evans 1954).
    """
    s, num_points = 1.0, 100_000
    back = (s**3 - (s - 2 * delta) ** 3) / 6  # integral of min(delta, distance to the border)
    exact = (s**2 * delta + back + 4 * s * delta * delta / 2) / (6 * s**2)
    coincide = 4 * s * (s - delta) / (6 * s**2)
    spacing = 0.5 * np.sqrt(6 * s**2 / num_points)
    t = 0.7 * delta
    near = (4 * s**2 - 4 * s * (delta - t) + s**2 - (s - 2 * t) ** 2) / (6 * s**2)
    across = (s**2 - (s - 2 * delta) ** 2 + 4 * delta * s) / (6 * s**2)  # share whose nearest face is at a right angle

    metrics = compare(cube(s, delta), cube(s), num_points=num_points, seed=0, thresholds=(t,), voxel_size=t / 2)
    assert metrics.cd_l1 == pytest.approx(exact + coincide * spacing, rel=0.01)
    assert metrics.accuracy_l1 == pytest.approx(metrics.completeness_l1, rel=0.01)  # they are mirror images
    assert metrics.fscores[t].precision == pytest.approx(near, rel=0.01)
    assert metrics.fscores[t].recall == pytest.approx(near, rel=0.01)
    assert metrics.spurious_area == pytest.approx(1 - near, abs=0.005)
    assert metrics.normal_consistency == pytest.approx(1 - across, rel=0.01)
    # 10 000 points in the box around both: standard error 0.004 at most
    assert metrics.volume_iou == pytest.approx((s - delta) / (s + delta), abs=0.012)


def test_shifted_planes():
    plane = np.array([[-0.9, -0.9, 0], [0.9, -0.9, 0], [0.9, 0.9, 0], [-0.9, 0.9, 0]]), np.array([[0, 1, 2], [0, 2, 3]])
    for shift in (0.05, 0.2):
        metrics = compare((plane[0] + [0, 0, shift], plane[1]), plane, num_points=100_000, seed=0)
        # sampling: the nearest sample lies 0.5 sqrt(3.24 / 100 000) aside, r² / (2 shift) farther: 0.3 % at most
        assert metrics.cd_l1 == pytest.approx(shift, rel=0.01)
        assert metrics.cd_l2 == pytest.approx(2 * shift**2, rel=0.01)


SHAPES = {
    "cubes": (cube(1.0, 0.07), cube(1.0)),
    "ring_and_ball": (
        mesh(trimesh.creation.torus(0.6, 0.25, major_sections=24, minor_sections=12)),
        mesh(trimesh.creation.icosphere(2, 0.7)),
    ),
    "cone_inside_out": (
        mesh(trimesh.creation.cone(0.5, 0.9), inside_out=True),
        mesh(trimesh.creation.cone(0.52, 0.88)),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_same_samples_same_figures_as_brute_force(name: str):
    """The arithmetic alone: with the very same points the second implementation gives the same figures."""
    pred, truth = SHAPES[name]
    num_points, seed = 3000, 5
    row = compare(pred, truth, num_points=num_points, seed=seed, thresholds=THRESHOLDS, with_iou=False).as_row()
    true_samples = sample_surface(truth, num_points, np.random.default_rng([seed, 0]))
    pred_samples = sample_surface(pred, num_points, np.random.default_rng([seed, 1]))
    expected = reference.geometry(
        reference.Samples(*pred_samples), reference.Samples(*true_samples), thresholds=THRESHOLDS
    )
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_own_samples_same_figures_but_for_sampling(name: str):
    """The second implementation with its own points: three standard errors of the difference of two means of 6000.

    The standard deviation of the distances is 0.8 of their mean or less, of the squared ones 1.4, of a share 0.5.
    """
    pred, truth = SHAPES[name]
    num_points = 6000
    row = compare(pred, truth, num_points=num_points, seed=1, thresholds=THRESHOLDS).as_row()
    expected = reference.geometry(
        reference.sample(*arrays(pred), num_points, 11),
        reference.sample(*arrays(truth), num_points, 12),
        thresholds=THRESHOLDS,
    )
    error_of_mean = np.sqrt(2 / num_points)
    for key in ("accuracy_l1", "completeness_l1", "cd_l1", "cd_l2"):
        variation = 1.4 if key == "cd_l2" else 0.8
        assert row[key] == pytest.approx(expected[key], rel=3 * variation * error_of_mean), key
    for key in expected.keys() - {"accuracy_l1", "completeness_l1", "cd_l1", "cd_l2"}:
        assert row[key] == pytest.approx(expected[key], abs=3 * 0.5 * error_of_mean), key


@pytest.mark.parametrize("name", ["cubes", "ring_and_ball"])
def test_ious_as_by_counting_crossings_of_rays(name: str):
    """Both with their own points; three standard errors of the difference, 0.5 sqrt(1/n + 1/n') at most."""
    pred, truth = SHAPES[name]
    metrics = compare(pred, truth, num_points=100_000, seed=0)
    uniform = reference.volume_iou(arrays(pred), arrays(truth), 6_000, 1)
    near = reference.surface_iou(arrays(pred), arrays(truth), 3_000, 2, IOU_NOISE)
    assert metrics.volume_iou == pytest.approx(uniform, abs=0.05)
    assert metrics.surface_iou == pytest.approx(near, abs=0.04)


def test_spurious_area_as_by_distances_to_every_face():
    pred, truth = SHAPES["ring_and_ball"][0], mesh(trimesh.creation.icosphere(1, 0.7))
    num_points, seed = 200, 0
    samples = reference.Samples(*sample_surface(pred, num_points, np.random.default_rng([seed, 1])))
    expected = reference.far_share(samples, arrays(truth), limit=0.2)
    assert 0.1 < expected < 0.9
    assert compare(pred, truth, num_points=num_points, seed=seed, voxel_size=0.1).spurious_area == expected


def test_field_errors_as_by_a_dictionary():
    rng = np.random.default_rng(0)
    every = np.argwhere(np.ones((9, 9, 9)))
    coords, true_coords = (every[rng.random(len(every)) < share] for share in (0.7, 0.4))
    sdf, true_sdf = rng.uniform(-1.1, 1.1, len(coords)), rng.uniform(-1, 1, len(true_coords))
    predicted = dict(zip(map(tuple, coords), sdf, strict=True))
    true = dict(zip(map(tuple, true_coords), true_sdf, strict=True))
    common = predicted.keys() & true.keys()
    near = {voxel for voxel, value in predicted.items() if abs(value) < 0.9}
    truly_near = {voxel for voxel, value in true.items() if abs(value) < 0.9}
    metrics = compare_sdf(coords, sdf, true_coords, true_sdf)
    assert metrics.sdf_l1 == pytest.approx(np.mean([abs(predicted[v] - true[v]) for v in common]))
    assert metrics.sign_errors == pytest.approx(np.mean([(predicted[v] < 0) != (true[v] < 0) for v in common]))
    assert metrics.band_precision == pytest.approx(len(near & truly_near) / len(near))
    assert metrics.band_recall == pytest.approx(len(near & truly_near) / len(truly_near))


def test_a_change_of_every_shape_shows_where_the_means_overlap():
    rng = np.random.default_rng(0)
    old = rng.uniform(0, 1, 30)
    new = old - 0.01 + rng.normal(0, 0.005, 30)
    change = summarise_change(list(old), list(new), seed=0)
    assert change is not None
    assert (change.mean, change.new_mean - change.old_mean) == pytest.approx((np.mean(new - old),) * 2)
    half = 1.96 * np.std(new - old) / np.sqrt(30)
    assert (change.ci_low, change.ci_high) == pytest.approx((change.mean - half, change.mean + half), abs=0.0005)
    assert change.ci_high < 0  # although the shapes themselves differ by 0.29 (one standard deviation)
    assert (change.num_lower, change.num_higher) == ((new < old).sum(), (new > old).sum())
    one_missing = summarise_change([*old, None, 0.5], [*new, 0.5, None], seed=0)
    assert one_missing == change
    assert summarise_change([None], [0.5], seed=0) is None
