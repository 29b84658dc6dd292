from itertools import combinations

import numpy as np
import trimesh

from model.sparse import SYMMETRIES, transform_coords
from tests.shapes import voxelized

RESOLUTION = 16


def corner_block() -> np.ndarray:
    return np.argwhere(np.ones((3, 3, 3))) + np.array([1, 4, 8])


def test_there_are_48_and_all_differ():
    coords = np.array([[0, 1, 2]])
    images = {tuple(transform_coords(coords, s, resolution=RESOLUTION)[0]) for s in range(48)}
    assert len(SYMMETRIES) == len(images) == 48


def test_number_zero_changes_nothing():
    np.testing.assert_array_equal(transform_coords(corner_block(), 0, resolution=RESOLUTION), corner_block())


def test_every_symmetry_keeps_distances_and_the_grid():
    coords = corner_block()
    for symmetry in range(48):
        moved = transform_coords(coords, symmetry, resolution=RESOLUTION)
        assert moved.dtype == coords.dtype
        assert moved.min() >= 0
        assert moved.max() < RESOLUTION
        for i, j in combinations(range(0, len(coords), 5), 2):
            assert np.square(moved[i] - moved[j]).sum() == np.square(coords[i] - coords[j]).sum()


def test_every_symmetry_keeps_the_centre_of_the_cube():
    """Voxel centres lie at (i + 0.5) * 2 / R - 1, so flipping i to R - 1 - i negates them."""
    coords = corner_block()
    for symmetry in range(48):
        before = (coords + 0.5) * 2 / RESOLUTION - 1
        after = (transform_coords(coords, symmetry, resolution=RESOLUTION) + 0.5) * 2 / RESOLUTION - 1
        np.testing.assert_allclose(np.square(after).sum(1), np.square(before).sum(1))


def test_every_symmetry_permutes_whole_bricks():
    bricks = {tuple(b) for b in corner_block() // 8}
    for symmetry in range(48):
        moved = transform_coords(corner_block(), symmetry, resolution=RESOLUTION) // 8
        assert len({tuple(b) for b in moved}) == len(bricks)


def test_moving_the_voxels_is_voxelizing_the_moved_mesh():
    mesh = trimesh.creation.box((1.9, 1.2, 0.7))
    mesh.vertices[mesh.vertices[:, 0] > 0] *= [1, 0.6, 0.8]  # a frustum: not symmetric in x
    here = voxelized(mesh)
    values = {tuple(c): v for c, v in zip(here.coords.tolist(), here.sdf, strict=True)}
    for symmetry in (1, 7, 21, 40, 47):
        axes, flips = SYMMETRIES[symmetry]
        center = mesh.bounds.mean(0)
        vertices = (mesh.vertices - center)[:, axes] * np.where(flips, -1, 1)
        there = voxelized(trimesh.Trimesh(vertices, mesh.faces, process=False))
        moved = transform_coords(here.coords, symmetry, resolution=32)
        expected = {tuple(c): values[tuple(o)] for c, o in zip(moved.tolist(), here.coords.tolist(), strict=True)}
        found = {tuple(c): v for c, v in zip(there.coords.tolist(), there.sdf, strict=True)}
        common = expected.keys() & found.keys()
        assert len(common) >= 0.99 * max(len(expected), len(found))  # voxels at |sdf| = 1 may fall either way
        np.testing.assert_allclose([expected[c] for c in common], [found[c] for c in common], atol=1e-4)
