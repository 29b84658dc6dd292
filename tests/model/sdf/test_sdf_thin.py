"""What is thinner than a voxel: kept as a shell, or said to be lost."""

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from model.sdf import SparseSDF, grid_surface, voxelize
from tests.model.sdf import brute_force_sdf as brute_force

VOXEL = 2 / 64 / 0.95  # at resolution 64, in units of half the longest side


def auto(mesh: trimesh.Trimesh, resolution: int = 64, **options: object) -> SparseSDF:
    given = {"mode": "auto", "max_bad_flip_ratio": 0.4, **options}
    return voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=2.0, **given)


def surface_of(shape: SparseSDF) -> trimesh.Trimesh:
    return trimesh.Trimesh(*grid_surface(shape).in_frame(shape.center, shape.scale), process=False)


def box(size: tuple[float, float, float], at: tuple[float, float, float] = (0, 0, 0)) -> trimesh.Trimesh:
    mesh = trimesh.creation.box(size)
    mesh.apply_translation(at)
    return mesh


def tray(wall: float, side: float = 2.0, height: float = 0.8) -> trimesh.Trimesh:
    """A closed surface: a square dish, its floor and walls `wall` thick."""
    half, inner = side / 2, side / 2 - wall
    profile = np.array([[0, 0], [half, 0], [half, height], [inner, height], [inner, wall], [0, wall]]) * [2**0.5, 1]
    mesh = trimesh.creation.revolve(profile, sections=4)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 4, (0, 0, 1)))
    assert mesh.is_watertight
    return mesh


def turned(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Into no plane of the grid."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (20, 30, 40), degrees=True).as_matrix()
    return mesh.copy().apply_transform(turn)


@pytest.mark.parametrize("wall", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("upright", [True, False])
def test_a_tray_with_walls_thinner_than_a_voxel_is_a_shell(wall: float, upright: bool) -> None:
    """A shell a voxel around it on both sides, so with no hole, and an area of twice that of the tray or more."""
    mesh = tray(wall * VOXEL)
    mesh = mesh if upright else turned(mesh)
    shape = auto(mesh)
    assert shape.mode == "shell"
    assert shape.lost_area_share == 0
    expected = voxelize(mesh.vertices, mesh.faces, resolution=64, truncation_voxels=2.0, mode="shell")
    assert np.array_equal(shape.sdf, expected.sdf)
    surface = surface_of(shape)
    assert surface.is_watertight
    assert surface.body_count == 1
    assert surface.volume == pytest.approx(mesh.area / 2 * (2 + wall) * VOXEL * 0.95 * shape.scale, rel=0.1)


def test_thick_walls_stay_a_solid_to_the_bit() -> None:
    for mesh in (tray(2.5 * VOXEL), turned(tray(2.5 * VOXEL)), trimesh.creation.icosphere(3), turned(box((2, 1, 1)))):
        shape = auto(mesh)
        solid = voxelize(mesh.vertices, mesh.faces, resolution=64, truncation_voxels=2.0)
        assert (shape.mode, shape.lost_area_share) == ("solid", 0)
        assert np.array_equal(shape.coords, solid.coords)
        assert np.array_equal(shape.sdf, solid.sdf)


@pytest.mark.parametrize("thick", [0.0, 0.5, 0.9])
def test_what_is_flat_along_an_axis_has_no_inside(thick: float) -> None:
    shape = auto(box((2, 2, thick * VOXEL)))
    assert shape.mode == "solid"
    assert not (shape.sdf < 0).any()
    assert shape.lost_area_share == 1


@pytest.mark.parametrize("thick", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("upright", [True, False])
def test_a_fin_on_a_cube_is_a_shell_beside_the_solid(thick: float, upright: bool) -> None:
    """Away from where they meet: the cube's own distance there, the fin's less a voxel here."""
    cube, fin = box((1, 1, 1)), box((2, thick * VOXEL * 0.7, 1), (1, 0, 0))
    mesh = trimesh.util.concatenate([cube, fin])
    mesh = mesh if upright else turned(mesh)
    shape = auto(mesh)
    assert shape.mode == "mixed"
    assert shape.lost_area_share == pytest.approx(0, abs=0.01)

    points = (shape.coords + 0.5) * 2 / 64 - 1
    corners = brute_force.normalised(mesh.vertices, mesh.faces)
    rows = np.random.default_rng(0).choice(len(points), 2000, replace=False)
    to_cube, to_fin = (
        brute_force.distances(points[rows], part) * 32
        for part in (corners[: len(cube.faces)], corners[len(cube.faces) :])
    )
    in_cube = np.abs(brute_force.winding_numbers(points[rows], corners[: len(cube.faces)])) > 0.5
    value = shape.sdf[rows] * 2
    on_fin = ~in_cube & (to_fin < 2.9) & (to_cube > 6)
    assert on_fin.sum() > 200
    assert np.abs(value - (to_fin - 1))[on_fin].max() < 1e-4
    on_cube = to_fin > 6
    assert on_cube.sum() > 200
    assert np.abs(value - np.where(in_cube, -to_cube, to_cube))[on_cube].max() < 1e-4

    surface = surface_of(shape)
    assert surface.is_watertight
    outside_area = 1.5  # of the fin, one side
    assert surface.volume == pytest.approx(1 + outside_area * (2 + thick * 0.7) / 32 * shape.scale, rel=0.05)


def test_an_antenna_is_kept_and_a_needle_in_the_solid_is_none() -> None:
    thin = 0.2 * VOXEL
    antenna = trimesh.util.concatenate([box((2, 2, 2)), box((thin, thin, 2), (0, 0, 1.5))])
    shape = auto(antenna)
    assert shape.mode == "mixed"
    assert surface_of(shape).bounds[1, 2] == pytest.approx(2.5, abs=2 * shape.scale * 2 / 64)
    needle = trimesh.util.concatenate([box((2, 2, 2)), box((thin, thin, 1.5))])
    assert (auto(needle).mode, auto(needle).lost_area_share) == ("solid", 0)


def test_the_share_of_lost_area_is_that_of_the_thin_part() -> None:
    """In mode solid nothing is kept, so the fin's area outside the cube is lost."""
    mesh = trimesh.util.concatenate([box((1, 1, 1)), box((2, 0.002, 1), (1, 0, 0))])
    for placed in (mesh, turned(mesh)):
        shape = voxelize(placed.vertices, placed.faces, resolution=64, truncation_voxels=2.0)
        assert shape.mode == "solid"
        outside = 2 * 1.5 * 1.0  # both sides
        assert shape.lost_area_share == pytest.approx(outside / mesh.area, rel=0.1)


def test_an_explicit_mode_is_what_it_says() -> None:
    mesh = trimesh.util.concatenate([box((1, 1, 1)), box((2, 0.002, 1), (1, 0, 0))])
    assert auto(mesh, mode="solid").mode == "solid"
    assert auto(mesh, mode="shell").mode == "shell"
    assert auto(tray(0.3 * VOXEL), mode="solid").lost_area_share == 1


def test_sharp_edges_of_thick_bodies_are_not_lost() -> None:
    """Cones and wedges taper to nothing, which is no thin part."""
    for mesh in (trimesh.creation.cone(0.5, 2), trimesh.creation.box((2, 2, 2)), trimesh.creation.icosahedron()):
        for placed in (mesh, turned(mesh)):
            shape = auto(placed)
            assert shape.mode == "solid"
            assert (shape.lost_area_share or 0) < 0.002
