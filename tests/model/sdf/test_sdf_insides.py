"""How blocks of voxels are decided near holes: against float64 sums over all triangles."""

import time

import numpy as np
import pytest
import trimesh
import warp as wp
from scipy.spatial import Delaunay

from model.sdf import insides, voxelize
from model.sdf.arrays import Seen
from model.sdf.edges import find_edges
from model.sdf.insides import _at, _change_around
from model.sdf.winding import Tree, edge_tree
from tests.model.sdf import brute_force_sdf as brute_force


@wp.kernel
def _expand(
    points: wp.array[wp.vec3d],
    steps: wp.array[wp.vec3],
    boundary: Tree,
    seen: Seen,
    reach: float,
    change: wp.array[wp.float32],
    error: wp.array[wp.float32],
) -> None:
    i = wp.tid()
    around = _change_around(points[i], boundary, seen, reach)
    change[i] = _at(around, steps[i])
    error[i] = around.error


def loop(num_edges: int, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Vertices of a wavy ring in random orientation."""
    angle = np.arange(num_edges) * 2 * np.pi / num_edges
    ring = np.stack([np.cos(angle), np.sin(angle), 0.3 * np.sin(3 * angle)], 1) * radius
    return ring @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + rng.normal(size=3) * 40


@pytest.mark.parametrize("rings", [[(5, 60)], [(200, 50)], [(4, 1)] * 200, [(40, 20), (300, 90), (3, 2)]])
@pytest.mark.parametrize("side", [8, 4, 2])
def test_expansion_of_the_boundarys_field_is_as_near_as_its_bound_says(rings: list, side: int) -> None:
    rng = np.random.default_rng(0)
    starts = [loop(num_edges, radius, rng) for num_edges, radius in rings]
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, 0)], 1) for ring in starts])
    caps = np.concatenate([np.stack([r, np.roll(r, -1, 0), np.broadcast_to(r.mean(0), r.shape)], 1) for r in starts])

    reach = (side - 1) / 2 * 3**0.5
    points = rng.normal(size=(3000, 3)) * 60
    steps = rng.normal(size=points.shape)
    steps *= reach / np.linalg.norm(steps, axis=1, keepdims=True)
    change, error = (wp.zeros(len(points), dtype=wp.float32, device="cpu") for _ in range(2))
    where = [wp.array(points, dtype=wp.vec3d, device="cpu"), wp.array(steps, dtype=wp.vec3, device="cpu")]
    tree = edge_tree(edges, device="cpu")
    inputs = [*where, tree, insides.seen_at(tree, reach), reach, change, error]
    wp.launch(_expand, len(points), inputs=inputs, device="cpu")

    truth = brute_force.winding_numbers(points + steps, caps) - brute_force.winding_numbers(points, caps)
    missed = change.numpy() - truth
    missed -= missed.round()  # crossing a cap changes the winding number by one
    bounded = error.numpy() < 0.5
    assert (np.abs(missed) <= error.numpy() + 1e-5)[bounded].all()
    assert bounded.mean() > 0.5
    assert np.median(error.numpy()[bounded]) < 0.05


@pytest.mark.parametrize("gone", ["the top fifth", "the top half", "a fifth of all, anywhere"])
def test_holes_are_decided_in_blocks_as_voxel_by_voxel(gone: str) -> None:
    """A large hole's cap lies near many voxels, and the winding number passes 0.5 far from any surface."""
    mesh, resolution = trimesh.creation.icosphere(3), 128
    order = mesh.triangles_center @ np.array([0.2, 0.3, 0.9])
    if gone == "a fifth of all, anywhere":
        order = np.random.default_rng(0).random(len(mesh.faces))
    faces = mesh.faces[order < np.quantile(order, 0.5 if gone == "the top half" else 0.8)]
    shape = voxelize(mesh.vertices, faces, resolution=resolution, truncation_voxels=2.0)
    coords = np.concatenate([shape.coords, shape.beyond()[0]])
    negative = np.concatenate([shape.sdf < 0, shape.beyond()[1] < 0])
    rows = np.random.default_rng(0).choice(len(coords), 4000)
    triangles = brute_force.normalised(mesh.vertices, faces)
    points = (coords[rows] + 0.5) * 2 / resolution - 1
    winding = np.abs(brute_force.winding_numbers(points, triangles))
    clear = np.abs(winding - 0.5) > 2e-4
    clear[rows < len(shape.sdf)] &= np.abs(shape.sdf[rows[rows < len(shape.sdf)]]) > 1e-3
    assert clear.mean() > 0.9
    assert (negative[rows] == (winding > 0.5))[clear].all()


def test_edges_say_where_a_mesh_ends_and_whether_its_faces_agree() -> None:
    mesh = trimesh.creation.icosphere(2)
    num_vertices = len(mesh.vertices)
    whole = find_edges(mesh.faces, num_vertices, device="cpu")
    assert not whole.mis_wound
    assert len(whole.boundary) == 0

    gone = mesh.faces[7]
    holed = find_edges(np.delete(mesh.faces, 7, 0), num_vertices, device="cpu")
    assert not holed.mis_wound
    assert sorted(map(tuple, holed.boundary)) == sorted(zip(gone, np.roll(gone, -1), strict=True))

    flipped = mesh.faces.copy()
    flipped[7] = flipped[7, ::-1]
    wrong = find_edges(flipped, num_vertices, device="cpu")
    assert wrong.mis_wound
    assert len(wrong.boundary) == 6  # two ways round, each edge of the face twice


def tetrahedra_as_quads(side: int = 19) -> tuple[np.ndarray, np.ndarray]:
    """A cube of 40,000 tetrahedra whose corners were taken for those of quads: faces everywhere, wound at random."""
    vertices = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(float)
    inner = ((vertices > 0) & (vertices < side - 1)).all(1)
    vertices[inner] += np.random.default_rng(0).uniform(-0.15, 0.15, (inner.sum(), 3))
    corners = Delaunay(vertices).simplices
    return vertices, np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])


def test_faces_everywhere_are_decided_in_seconds() -> None:
    """Minutes, without a bound: no block's winding number can stand for its neighbours, and each takes long."""
    vertices, faces = tetrahedra_as_quads()
    assert len(faces) > 70_000
    voxelize(*tetrahedra_as_quads(3), resolution=16, truncation_voxels=2.0)  # compiles the kernels
    before = time.process_time()
    shape = voxelize(vertices, faces, resolution=64, truncation_voxels=2.0)
    assert time.process_time() - before < 30
    assert 0 < (shape.sdf < 0).mean() < 1


def test_what_is_decided_at_once_is_right_but_near_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no visits to spend, a block's own winding number and the crossings decide all of its voxels."""
    mesh = trimesh.creation.icosphere(3)
    faces = mesh.faces[np.random.default_rng(0).random(len(mesh.faces)) < 0.97]
    exact = voxelize(mesh.vertices, faces, resolution=64, truncation_voxels=2.0)
    monkeypatch.setattr(insides, "_MOST_VISITS", 0.0)
    monkeypatch.setattr(insides, "_MOST_VISITS_A_VOXEL", 0.0)
    quick = voxelize(mesh.vertices, faces, resolution=64, truncation_voxels=2.0)
    differ = (exact.sdf < 0) != (quick.sdf < 0)
    assert 0 < differ.mean() < 0.05
