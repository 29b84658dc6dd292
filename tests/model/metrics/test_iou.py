"""What is inside a field, by its definition and by closed forms; IoUs that rest on it."""

import numpy as np
import pytest
import trimesh

from model.meshes import Mesh
from model.metrics import Field, Truth, compare
from model.metrics.iou import FieldSolid
from model.sdf import extract_mesh

RESOLUTION = 32
EVERY = np.argwhere(np.ones((RESOLUTION,) * 3, bool))
CENTRES = (EVERY + 0.5) * 2 / RESOLUTION - 1
RADIUS = 0.7


def ball(*, bricks: bool = True, radius: float = RADIUS) -> Field:
    """The distance to a sphere, on the 8^3 bricks that hold a voxel within two voxels of it, or everywhere."""
    sdf = np.linalg.norm(CENTRES, axis=1) - radius
    brick = np.ravel_multi_index(tuple((EVERY // 8).T), (RESOLUTION // 8,) * 3)
    kept = np.isin(brick, brick[np.abs(sdf) < 2 * 2 / RESOLUTION]) if bricks else np.ones(len(sdf), bool)
    return Field(EVERY[kept], sdf[kept], RESOLUTION)


def by_definition(field: Field, points: np.ndarray) -> np.ndarray:
    """Point by point, with a dictionary of voxels and all distances to them."""
    stored = {tuple(voxel): value for voxel, value in zip(field.coords.tolist(), field.sdf.tolist(), strict=True)}
    inside = []
    for place in (points + 1) * RESOLUTION / 2 - 0.5:
        low = np.floor(place).astype(int)
        corners = [tuple(low + corner) for corner in np.argwhere(np.ones((2, 2, 2)))]
        if all(corner in stored for corner in corners):
            value = sum(np.prod(1 - np.abs(place - corner)) * stored[corner] for corner in corners)
        else:
            value = field.sdf[((field.coords - place) ** 2).sum(1).argmin()]
        inside.append(value < 0)
    return np.array(inside)


def test_inside_is_trilinear_between_stored_voxels_and_the_nearest_stored_sign_elsewhere():
    rng = np.random.default_rng(0)
    whole = ball()
    holes = rng.random(len(whole.sdf)) < 0.9  # cells with some corners, voxels without neighbours
    field = Field(whole.coords[holes], whole.sdf[holes] + rng.normal(0, 0.05, holes.sum()), RESOLUTION)
    points = rng.uniform(-1, 1, (1500, 3))
    np.testing.assert_array_equal(FieldSolid(field).inside(points), by_definition(field, points))


def test_the_bricks_around_a_sphere_know_its_middle_and_the_corners_of_the_cube():
    points = np.random.default_rng(0).uniform(-1, 1, (20_000, 3))
    radii = np.linalg.norm(points, axis=1)
    inside = FieldSolid(ball()).inside(points)
    clear = np.abs(radii - RADIUS) > 0.002  # a chord of a cell of 0.0625 is this far from the sphere at most
    np.testing.assert_array_equal(inside[clear], radii[clear] < RADIUS)


def test_a_field_without_a_closed_surface_has_an_iou_all_the_same():
    """Half of the bricks are gone, so the mesh has a border; the nearest signs still say what is inside."""
    field = ball()
    left = field.coords[:, 0] < RESOLUTION // 2
    half = Field(field.coords[left], field.sdf[left], RESOLUTION)
    mesh = extract_mesh(half.coords, half.sdf, resolution=RESOLUTION)
    assert not Mesh(*mesh).is_closed
    truth = trimesh.creation.icosphere(4, RADIUS)
    assert compare(mesh, truth, num_points=2000, seed=0).volume_iou is None
    with_field = compare(mesh, truth, num_points=20_000, seed=0, field=half)
    assert with_field.volume_iou is not None
    assert with_field.surface_iou is not None
    assert 0.3 < with_field.volume_iou < 0.9
    whole = compare(
        extract_mesh(field.coords, field.sdf, resolution=RESOLUTION), truth, num_points=20_000, seed=0, field=field
    )
    assert whole.volume_iou == pytest.approx(1, abs=0.01)


def test_what_a_field_fills_far_from_the_truth_counts():
    """A field that is negative everywhere fills the cube: V-IoU is the share of the cube that the truth is."""
    field = Field(EVERY, np.full(len(EVERY), -1.0), RESOLUTION)
    truth = Truth(trimesh.creation.box((1.0, 0.8, 0.5)), num_points=100_000, seed=0)
    assert truth.solid.ious(FieldSolid(field)).volume == pytest.approx(1.0 * 0.8 * 0.5 / 8, rel=0.01)


def test_an_open_truth_has_an_inside_by_its_winding_number():
    """A sphere without its cap: where the winding number passes one half, as voxelize sees it too."""
    sphere = trimesh.creation.icosphere(4, RADIUS)
    opened = Mesh(np.asarray(sphere.vertices), sphere.faces[sphere.triangles_center[:, 2] < 0.6])
    assert not opened.is_closed
    field = ball()
    mesh = extract_mesh(field.coords, field.sdf, resolution=RESOLUTION)
    metrics = compare(mesh, opened, num_points=50_000, seed=0, field=field)
    assert metrics.volume_iou == pytest.approx(1, abs=0.05)


def test_predictions_are_asked_at_the_same_points():
    """So that the difference of two of them has none of the points' noise: the same solid twice differs in nothing."""
    truth = Truth(trimesh.creation.torus(0.6, 0.2), num_points=5_000, seed=0)
    first, second = (truth.solid.ious(FieldSolid(ball(bricks=bricks))) for bricks in (True, False))
    assert first == second
