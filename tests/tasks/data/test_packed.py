"""Shapes as bricks with a bit for each voxel: cropped, and unfolded as each symmetry shows them."""

import numpy as np
import pytest
import torch

from model.sdf import SparseSDF
from model.sparse import Grid, SparseTensor, transform_coords
from model.sparse.tensor import ShapeRows
from model.vae import SDFTarget
from model.vae.network import NUM_LEVELS
from model.vae.receptive_field import plan_decode
from tasks.data.packed import batch_of_one, collate, crop
from tasks.shards import PackedSDF, packed_of, shape_row
from tests.shapes import as_target, by_coords, pool_mean, ring_and_box, voxelized

# --- a shape that is larger than a batch may be ----------------------------------------------------------------------


def packed(shape: SparseSDF) -> PackedSDF:
    return packed_of(shape_row("shape", shape))


def target_of(shape: PackedSDF, *, symmetry: int = 0) -> SDFTarget:
    """All of its voxels."""
    compared = np.ones(len(shape.brick_coords), bool)
    return batch_of_one("shape", shape, symmetry=symmetry, compared=compared, resolution=32).unfold()


def cropped(max_voxels: int, *, seed: int = 0) -> PackedSDF:
    return crop(packed(voxelized(ring_and_box())), max_voxels, np.random.default_rng(seed))


def bricks_of(shape: PackedSDF) -> set[tuple[int, ...]]:
    return {tuple(brick) for brick in shape.brick_coords.tolist()}


def test_a_shape_with_room_stays_whole():
    whole = packed(voxelized(ring_and_box()))
    assert crop(whole, len(whole.sdf), np.random.default_rng(0)) is whole


@pytest.mark.parametrize("max_voxels", [1000, 3000, 8000])
def test_a_crop_is_whole_bricks_of_the_shape(max_voxels):
    part = cropped(max_voxels)
    assert max_voxels - 512 < len(part.sdf) <= max_voxels
    whole, target = as_target(voxelized(ring_and_box())), target_of(part)
    for got, everything in ((target.band, whole.band), (target.beyond, whole.beyond)):
        within = {c: v for c, v in by_coords(everything).items() if tuple(x // 8 for x in c[1:]) in bricks_of(part)}
        assert by_coords(got) == within


def test_a_crop_is_a_cube_of_bricks():
    part, whole = cropped(3000), packed(voxelized(ring_and_box()))
    low, high = part.brick_coords.min(0) + 1, part.brick_coords.max(0) - 1
    within = ((whole.brick_coords >= low) & (whole.brick_coords <= high)).all(1)
    assert {tuple(brick) for brick in whole.brick_coords[within].tolist()} <= bricks_of(part)


def test_the_seed_decides_where_a_crop_is():
    first, again, other = (bricks_of(cropped(2000, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


# --- a shape as tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", range(48))
def test_a_symmetry_moves_the_voxels_and_keeps_their_values(symmetry):
    shape = voxelized(ring_and_box())
    got, plain = target_of(packed(shape), symmetry=symmetry), as_target(shape)
    for tensor, unmoved in ((got.band, plain.band), (got.beyond, plain.beyond)):
        moved = transform_coords(unmoved.coords[:, 1:].numpy(), symmetry, resolution=32)
        assert tensor.coords.dtype == torch.int32
        np.testing.assert_array_equal(tensor.coords.numpy(), np.pad(moved, ((0, 0), (1, 0))))
        np.testing.assert_array_equal(tensor.feats.numpy(), unmoved.feats.numpy())
        assert tensor.grid.extent == 32


def batch_target() -> SDFTarget:
    """Two shapes, of which each has another symmetry."""
    shapes = packed(voxelized(ring_and_box())), cropped(3000)
    compared = [np.arange(len(shape.brick_coords)) % 3 == 0 for shape in shapes]
    samples = [
        batch_of_one("shape", shape, symmetry=symmetry, compared=drawn, resolution=32)
        for shape, symmetry, drawn in zip(shapes, (7, 30), compared, strict=True)
    ]
    return collate(samples).unfold()


def without_places(x: SparseTensor) -> SparseTensor:
    return SparseTensor.on(Grid(x.coords, num_shapes=x.grid.num_shapes, extent=x.grid.extent), x.feats)


def without_places_rows(grid: Grid) -> ShapeRows:
    return Grid(grid.coords, num_shapes=grid.num_shapes, extent=grid.extent).shape_rows


def test_pooling_by_places_is_pooling_by_coordinates():
    by_place = batch_target().band
    by_key = without_places(by_place)
    for _ in range(NUM_LEVELS):
        assert by_place.grid.places is not None
        by_place, by_key = pool_mean(by_place), pool_mean(by_key)
        assert by_place.grid.extent == by_key.grid.extent
        assert len(by_place.grid) == len(by_key.grid)
        found, expected = by_coords(by_place), by_coords(by_key)
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[c] for c in expected], list(expected.values()), rtol=1e-5)


def test_rows_with_places_are_already_those_of_one_shape_after_the_other():
    grid = batch_target().band.grid
    for times in range(NUM_LEVELS + 1):
        got, expected = grid.pooled(times).shape_rows, without_places_rows(grid.pooled(times))
        assert torch.equal(got.order, expected.order)
        assert torch.equal(got.offsets, expected.offsets)


def test_a_plan_by_places_is_the_plan_by_coordinates():
    target = batch_target()
    latents = target.band.grid.pooled(NUM_LEVELS)
    wanted = torch.cat([target.band.coords, target.beyond.coords])
    expected = plan_decode(latents, wanted, num_levels=NUM_LEVELS)
    for step, other in zip(target.plan.subdivisions, expected.subdivisions, strict=True):
        assert torch.equal(step.fine.coords, other.fine.coords)
        assert torch.equal(step.children, other.children)
    assert torch.equal(target.plan.subdivisions[-1].fine.coords, wanted)
