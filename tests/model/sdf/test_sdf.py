"""The truth is a float64 brute force, or a shape whose distance everybody knows."""

import numpy as np
import pytest
import trimesh

from model.errors import InputError
from model.sdf import SparseSDF, extract_mesh, grid_surface, normalised_surface, voxelize
from model.sdf.edges import find_edges, orient_consistently
from model.sdf.sign import cap_holes
from model.sdf.winding import winding_numbers
from tests.model.sdf import brute_force_sdf as brute_force

TETRAHEDRON = (
    np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]),
    np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]),
)


def sphere(subdivisions: int = 3) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions)


def without_top(mesh: trimesh.Trimesh, share: float = 0.3) -> trimesh.Trimesh:
    """The mesh with a hole where it is highest."""
    height = mesh.triangles_center[:, 2]
    return trimesh.Trimesh(mesh.vertices, mesh.faces[height < np.quantile(height, 1 - share)])


def sheet(slope: float = 0.4) -> trimesh.Trimesh:
    """A bent strip with no inside, its corners nowhere near voxel centres."""
    x, y = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-0.6, 0.7, 5), indexing="ij")
    vertices = np.stack([x, y, slope * x**2 + 0.1 * y], -1).reshape(-1, 3)
    corner = (np.arange(6)[:, None] * 5 + np.arange(4)).reshape(-1, 1)
    return trimesh.Trimesh(vertices, np.concatenate([corner + np.array(rest) for rest in ((0, 5, 1), (5, 6, 1))]))


def two_overlapping_boxes() -> trimesh.Trimesh:
    second = trimesh.creation.box((1, 0.7, 0.5))
    second.apply_translation((0.4, 0.2, 0.3))
    return trimesh.util.concatenate([trimesh.creation.box((1, 1, 1)), second])


MESHES = {
    "sphere": sphere(1),
    "box, faces on voxel centres": trimesh.creation.box((1.9, 1.9, 1.0)),
    "long thin box": trimesh.creation.box((10, 1, 0.2)),
    "torus": trimesh.creation.torus(1.0, 0.3, major_sections=9, minor_sections=6),
    "sphere with a hole": without_top(sphere(1)),
    "box without lid": trimesh.Trimesh(
        trimesh.creation.box().vertices, trimesh.creation.box().faces[trimesh.creation.box().face_normals[:, 2] < 0.5]
    ),
    "sheet": sheet(),
    "overlapping boxes": two_overlapping_boxes(),
}


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("flipped", [False, True], ids=["as it is", "inside out"])
def test_every_voxel_equals_the_brute_force(name: str, flipped: bool) -> None:
    mesh, resolution, band = MESHES[name], 24, 2.5
    faces = mesh.faces[:, ::-1] if flipped else mesh.faces
    shape = voxelize(mesh.vertices, faces, resolution=resolution, truncation_voxels=band)

    triangles = brute_force.normalised(mesh.vertices, mesh.faces)
    points = brute_force.grid_points(resolution)
    distance = brute_force.distances(points, triangles).reshape((resolution,) * 3) * resolution / 2
    winding = np.abs(brute_force.winding_numbers(points, triangles)).reshape((resolution,) * 3)
    stored = dense(shape)

    decided = np.abs(distance - band) > 1e-4  # nearer to the band's edge either answer is right
    assert ((stored != 0) == (distance < band))[decided].all()
    assert np.abs(np.abs(stored) * band - distance)[stored != 0].max() < 1e-5
    # On a surface, and where w passes 0.5 across a hole, the sign is a matter of rounding.
    clear = (distance > 1e-4) & (np.abs(winding - 0.5) > 0.01)
    assert clear.mean() > 0.95
    assert ((stored < 0) == (winding > 0.5))[(stored != 0) & clear].all()

    coords, sign = shape.beyond()
    at = tuple(coords.T)
    assert ((sign < 0) == (winding[at] > 0.5))[clear[at]].all()
    assert (distance[at] > band - 1e-4).all()


def dense(shape: SparseSDF) -> np.ndarray:
    """Stored values in a full grid, 0 where nothing is stored."""
    grid = np.zeros((shape.resolution,) * 3, np.float32)
    grid[tuple(shape.coords.T)] = np.where(shape.sdf == 0, np.float32(1e-9), shape.sdf)
    return grid


def test_rows_are_brick_by_brick_and_bricks_hold_the_band_and_beyond() -> None:
    shape = voxelize(*TETRAHEDRON, resolution=32, truncation_voxels=2.0)
    beyond, sign = shape.beyond()
    assert shape.coords.dtype == np.int32
    assert shape.sdf.dtype == np.float32
    assert np.abs(shape.sdf).max() < 1
    assert set(np.unique(sign)) == {-1.0, 1.0}
    together = np.concatenate([shape.coords, beyond])
    assert len(np.unique(together, axis=0)) == len(together) == len(shape.brick_coords) * 512
    brick, local = shape.coords // 8, shape.coords % 8
    order = np.lexsort([*local.T[::-1], *brick.T[::-1]])
    assert (order == np.arange(len(order))).all()
    assert np.array_equal(np.unique(brick, axis=0), shape.brick_coords)
    assert np.array_equal(shape.brick_inside[shape.brick_band], shape.sdf < 0)


def test_the_affine_brings_the_longest_side_to_the_cube() -> None:
    moved = trimesh.creation.box((4, 2, 1))
    moved.apply_translation((100, -50, 3))
    shape = voxelize(moved.vertices, moved.faces, resolution=64, truncation_voxels=2.0)
    assert shape.center == pytest.approx([100, -50, 3])
    assert shape.scale == pytest.approx(4 / 1.9)
    vertices = grid_surface(shape).vertices
    bounds = np.array([vertices.min(0), vertices.max(0)]) * shape.scale + shape.center
    assert np.abs(bounds - moved.bounds).max() < 0.1 * 2 / 64 * shape.scale


@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_size_and_place_of_a_mesh_do_not_matter(factor: float) -> None:
    vertices, faces = sphere().vertices, sphere().faces
    here = voxelize(vertices, faces, resolution=32, truncation_voxels=2.0)
    there = voxelize(vertices * factor + factor, faces, resolution=32, truncation_voxels=2.0)
    assert np.array_equal(here.coords, there.coords)
    assert np.abs(here.sdf - there.sdf).max() < 1e-4


def test_huge_and_tiny_triangles_in_one_mesh() -> None:
    """Triangles that cross the whole grid are split for the distance; the result must not show it."""
    mesh = trimesh.util.concatenate([trimesh.creation.box(), sphere(2).apply_scale(0.01)])
    fine = trimesh.creation.box().subdivide_to_size(0.05)
    coarse = voxelize(mesh.vertices, mesh.faces, resolution=128, truncation_voxels=2.0)
    reference = voxelize(fine.vertices, fine.faces, resolution=128, truncation_voxels=2.0)
    near_box = np.abs(coarse.coords - 63.5).max(1) > 10
    assert np.array_equal(coarse.coords[near_box], reference.coords)
    assert np.abs(coarse.sdf[near_box] - reference.sdf).max() < 1e-5


@pytest.mark.parametrize("name", ["sphere", "sphere with a hole", "sheet", "overlapping boxes"])
@pytest.mark.parametrize("turn", [((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, 1, 1)), ((0, 2, 1), (1, -1, 1))])
def test_a_quarter_turn_permutes_the_voxels(name: str, turn: tuple) -> None:
    axes, signs = np.array(turn[0]), np.array(turn[1])
    mesh = MESHES[name]
    here = dense(voxelize(mesh.vertices, mesh.faces, resolution=32, truncation_voxels=2.0))
    there = dense(voxelize(mesh.vertices[:, axes] * signs, mesh.faces, resolution=32, truncation_voxels=2.0))
    turned = np.flip(here.transpose(axes), np.flatnonzero(signs < 0))
    touched = np.abs(turned) > 1e-4  # on the surface the sign is a matter of rounding
    assert ((there != 0) == (turned != 0)).all()
    assert np.abs(there - turned)[touched].max() <= 1e-5


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_flipping_faces_of_a_closed_mesh_changes_nothing(share: float) -> None:
    for mesh in (sphere(3), MESHES["torus"], trimesh.creation.box((1.9, 1.0, 0.4))):
        flipped = np.random.default_rng(0).random(len(mesh.faces)) < share
        messy = np.where(flipped[:, None], mesh.faces[:, ::-1], mesh.faces)
        tidy = voxelize(mesh.vertices, mesh.faces, resolution=32, truncation_voxels=2.0)
        mended = voxelize(mesh.vertices, messy, resolution=32, truncation_voxels=2.0)
        assert np.array_equal(tidy.coords, mended.coords)
        assert np.array_equal(tidy.sdf, mended.sdf)


def test_a_shell_is_the_distance_less_a_voxel_outside_on_both_sides() -> None:
    mesh, band = sheet(), 2.0
    shape = voxelize(mesh.vertices, mesh.faces, resolution=64, truncation_voxels=band, mode="shell")
    chosen = np.random.default_rng(0).choice(64**3, 30_000)
    points = brute_force.grid_points(64)[chosen]
    distance = brute_force.distances(points, brute_force.normalised(mesh.vertices, mesh.faces)) * 32
    stored = dense(shape).reshape(-1)[chosen]
    decided = np.abs(distance - band - 1) > 1e-4
    assert ((stored != 0) == (distance < band + 1))[decided].all()
    assert (stored != 0).sum() > 1000
    assert np.abs(stored * band + 1 - distance)[stored != 0].max() < 1e-5
    _, sign = shape.beyond()
    assert (sign == 1).all()
    surface = trimesh.Trimesh(*grid_surface(shape), process=False)
    assert surface.is_watertight
    assert surface.volume > 0


def test_auto_makes_shells_of_what_has_no_inside() -> None:
    options = {"resolution": 32, "truncation_voxels": 2.0, "mode": "auto", "max_bad_flip_ratio": 0.05}
    ball, strip = sphere(), sheet()
    solid = voxelize(ball.vertices, ball.faces, **options)
    shell = voxelize(strip.vertices, strip.faces, **options)
    assert (solid.mode, shell.mode) == ("solid", "shell")
    assert solid.bad_flip_ratio == 0
    assert shell.bad_flip_ratio > 0.05
    expected = voxelize(strip.vertices, strip.faces, resolution=32, truncation_voxels=2.0, mode="shell")
    assert np.array_equal(shell.sdf, expected.sdf)
    with pytest.raises(InputError, match="mode is 'hollow'"):
        voxelize(ball.vertices, ball.faces, resolution=32, truncation_voxels=2.0, mode="hollow")


def test_a_surface_goes_back_to_the_frame_of_its_mesh() -> None:
    mesh = sphere(3).apply_scale(7).apply_translation((100, -20, 3))
    shape = voxelize(mesh.vertices, mesh.faces, resolution=64, truncation_voxels=2.0)
    surface = grid_surface(shape).in_frame(shape.center, shape.scale)
    assert surface.vertices.mean(0) == pytest.approx([100, -20, 3], abs=0.01)
    assert np.linalg.norm(surface.vertices - [100, -20, 3], axis=1).mean() == pytest.approx(7, abs=0.05)


def test_degenerate_triangles_change_nothing() -> None:
    vertices, faces = sphere().vertices, sphere().faces
    extra = np.array([[0, 0, 0], [faces[0, 0], faces[0, 0], faces[0, 1]]])
    middle = len(vertices)
    needle = np.array([[faces[0, 0], faces[0, 1], middle]])
    vertices = np.vstack([vertices, vertices[faces[0, :2]].mean(0)])
    plain = voxelize(vertices, faces, resolution=32, truncation_voxels=2.0)
    dirty = voxelize(vertices, np.vstack([faces, extra, needle]), resolution=32, truncation_voxels=2.0)
    assert np.array_equal(plain.coords, dirty.coords)
    assert np.abs(plain.sdf - dirty.sdf).max() < 1e-5


def test_open_mesh_with_one_triangle_gone_has_no_leak() -> None:
    """A flood fill would enter through the hole, and groups of equal sign would carry its sign everywhere."""
    whole, holed = sphere(1), sphere(1)
    holed.update_faces(np.arange(len(holed.faces)) != 7)
    a = voxelize(whole.vertices, whole.faces, resolution=64, truncation_voxels=2.0)
    b = voxelize(holed.vertices, holed.faces, resolution=64, truncation_voxels=2.0)
    differ = dense(a) * dense(b) < 0
    assert differ.sum() < 0.02 * len(a.coords)
    assert (a.sdf < 0).mean() == pytest.approx((b.sdf < 0).mean(), abs=0.03)


def test_bad_flips_are_none_on_closed_and_some_on_open_meshes() -> None:
    closed = voxelize(sphere().vertices, sphere().faces, resolution=64, truncation_voxels=2.0)
    holed = without_top(sphere())
    opened = voxelize(holed.vertices, holed.faces, resolution=64, truncation_voxels=2.0)
    assert closed.bad_flip_ratio == 0
    assert 0.01 < opened.bad_flip_ratio < 0.5


def test_orientation_flips_the_fewer_faces_and_leaves_a_moebius_band() -> None:
    faces = sphere(2).faces
    wrong = faces.copy()
    wrong[:5] = wrong[:5, ::-1]
    assert np.array_equal(orient_consistently(wrong), faces)
    strip = np.array([[i, (i + 1) % 7, (i + 2) % 7] for i in range(7)])
    assert np.array_equal(orient_consistently(strip), strip)


def test_caps_close_every_hole() -> None:
    """Winding numbers of mesh and caps together are whole numbers anywhere, whatever the mesh."""
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(30, 3))
    faces = np.stack([rng.permutation(30)[:3] for _ in range(40)])
    closed = np.concatenate([vertices[faces], cap_holes(vertices, find_edges(faces, 30, device="cpu").boundary)])
    winding = brute_force.winding_numbers(rng.normal(size=(100, 3)), closed)
    assert np.abs(winding - winding.round()).max() < 1e-9
    assert np.abs(winding.round()).max() > 0
    assert len(find_edges(sphere().faces, len(sphere().vertices), device="cpu").boundary) == 0
    assert len(cap_holes(sphere().vertices, np.zeros((0, 2), int))) == 0


def test_tree_of_dipoles_agrees_with_the_sum_of_solid_angles() -> None:
    mesh = without_top(sphere(3))
    points = np.random.default_rng(0).uniform(-1.5, 1.5, (300, 3))
    got = winding_numbers(points, mesh.triangles, device="cpu")
    assert np.abs(got - brute_force.winding_numbers(points, mesh.triangles)).max() < 0.01


@pytest.mark.parametrize("name", ["sphere", "torus", "overlapping boxes", "box, faces on voxel centres"])
def test_surface_of_a_closed_mesh_is_closed_outward_and_in_place(name: str) -> None:
    mesh, resolution = MESHES[name], 64
    shape = voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=2.0)
    surface = trimesh.Trimesh(*grid_surface(shape), process=False)
    assert surface.is_watertight
    assert surface.is_winding_consistent
    assert surface.volume > 0
    triangles = brute_force.normalised(mesh.vertices, mesh.faces)
    # never farther from the truth than marching cubes rounds an edge
    assert brute_force.distances(surface.vertices, triangles).max() < 0.8 * 2 / resolution


def test_sphere_comes_back_with_its_radius() -> None:
    shape = voxelize(sphere(5).vertices, sphere(5).faces, resolution=64, truncation_voxels=2.0)
    radius = np.linalg.norm(grid_surface(shape).vertices, axis=1)
    assert radius.mean() == pytest.approx(0.95, abs=5e-4)  # the mesh itself sags that much between its vertices
    assert np.abs(radius - 0.95).max() < 1e-3


def test_a_ring_comes_back_within_a_hundredth_of_a_voxel_and_nothing_else_does() -> None:
    """Its formula is the truth: the facets of the input are so many that they sag by 0.001 voxel."""
    resolution, minor, major = 256, 0.1, 0.85
    mesh = trimesh.creation.torus(major, minor, major_sections=800, minor_sections=240)
    shape = voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=2.0)
    surface = grid_surface(shape).in_frame(shape.center, shape.scale)
    corners = surface.vertices[surface.faces]

    def distance(points: np.ndarray) -> np.ndarray:  # in voxels
        ring = np.hypot(points[:, 0], points[:, 1]) - major
        return np.abs(np.hypot(ring, points[:, 2]) - minor) * resolution / 2

    assert distance(corners.mean(1)).mean() < 0.01
    assert distance(surface.vertices).max() < 0.1  # no face is anywhere else: spurious area 0
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert areas.sum() == pytest.approx(4 * np.pi**2 * major * minor, rel=1e-3)  # each part of it is there once
    assert trimesh.Trimesh(*surface, process=False).is_watertight


def test_iso_level_moves_the_surface_by_that_distance() -> None:
    shape = voxelize(sphere(5).vertices, sphere(5).faces, resolution=64, truncation_voxels=3.0)
    inner = extract_mesh(shape.coords, shape.sdf, resolution=64, iso_level=-0.3)
    assert np.linalg.norm(inner.vertices, axis=1).mean() == pytest.approx(0.95 - 0.3 * 3 * 2 / 64, abs=5e-4)


def test_any_signs_give_a_closed_manifold_oriented_surface() -> None:
    """All 256 cases next to each other, in random order of rows: every edge has two faces, one in each direction."""
    resolution, rng = 24, np.random.default_rng(0)
    field = rng.normal(size=(resolution,) * 3)
    for axis in range(3):
        np.moveaxis(field, axis, 0)[[0, -1]] = 1.0
    coords = np.stack(np.nonzero(np.ones_like(field)), 1)
    rows = rng.permutation(len(coords))
    surface = extract_mesh(coords[rows], field.reshape(-1)[rows], resolution=resolution)
    start, end = surface.faces.reshape(-1), np.roll(surface.faces, -1, 1).reshape(-1)
    directed = {*zip(start.tolist(), end.tolist(), strict=True)}
    assert len(directed) == len(start)
    assert {(b, a) for a, b in directed} == directed
    # volume is positive where the field is negative
    volume = trimesh.Trimesh(*surface, process=False).volume * (resolution / 2) ** 3
    assert volume == pytest.approx((field < 0).sum(), rel=0.2)


def test_no_surface_where_a_corner_is_not_stored() -> None:
    resolution = 8
    coords = np.stack(np.nonzero(np.ones((resolution,) * 3)), 1)
    sdf = (coords[:, 2] - 3.5).astype(np.float32)
    whole = extract_mesh(coords, sdf, resolution=resolution)
    gone = ~(coords == [4, 4, 3]).all(1)
    holed = extract_mesh(coords[gone], sdf[gone], resolution=resolution)
    assert len(whole.faces) == 2 * 7 * 7
    assert len(holed.faces) == 2 * (7 * 7 - 4)
    assert np.allclose(whole.vertices[:, 2], 0)
    normal = np.cross(*(whole.vertices[whole.faces[:, i]] - whole.vertices[whole.faces[:, 0]] for i in (1, 2)))
    assert (normal[:, 2] > 0).all()  # up is outside


@pytest.mark.parametrize("sdf", [np.zeros(0), np.ones(8)], ids=["no voxels", "no crossing"])
def test_nothing_to_extract_is_an_empty_mesh(sdf: np.ndarray) -> None:
    coords = np.stack(np.nonzero(np.ones((2, 2, 2))), 1)[: len(sdf)]
    surface = extract_mesh(coords, sdf, resolution=8)
    assert surface.vertices.shape == (0, 3)
    assert surface.faces.shape == (0, 3)


def test_truth_surface_is_normalised_and_turned_outward() -> None:
    mesh = trimesh.creation.box((4, 2, 1))
    mesh.apply_translation((7, 8, 9))
    surface = trimesh.Trimesh(*normalised_surface(mesh.vertices, mesh.faces[:, ::-1]), process=False)
    assert surface.bounds == pytest.approx(np.array([[-0.95, -0.475, -0.2375], [0.95, 0.475, 0.2375]]))
    assert surface.volume == pytest.approx(1.9 * 0.95 * 0.475)


@pytest.mark.parametrize(
    ("vertices", "faces", "words"),
    [
        (np.zeros((3, 3)), np.zeros((0, 3), int), "no faces"),
        (np.zeros((3, 3)), np.array([[0, 1, 2]]), "one point"),
        (np.array([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]]), np.array([[0, 1, 2]]), "NaN"),
        (np.eye(3), np.array([[0, 1, 3]]), "use vertices 0 to 3 but there are 3"),
        (np.eye(3), np.array([[0, 1, -1]]), "use vertices -1"),
        (np.eye(3), np.array([[0, 1, 2, 0]]), "triangulate"),
        (np.eye(3), np.array([[0.0, 1, 2]]), "integers"),
    ],
)
def test_what_is_no_mesh_is_refused(vertices: np.ndarray, faces: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        voxelize(vertices, faces, resolution=32, truncation_voxels=2.0)


@pytest.mark.parametrize(("resolution", "truncation"), [(60, 2.0), (0, 2.0), (32, 0.0), (32, np.nan)])
def test_impossible_parameters_are_refused(resolution: int, truncation: float) -> None:
    with pytest.raises(InputError, match="expected"):
        voxelize(*TETRAHEDRON, resolution=resolution, truncation_voxels=truncation)
