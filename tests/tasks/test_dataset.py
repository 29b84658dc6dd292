from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from model.symmetry import SYMMETRIES, transform_coords
from tasks.dataset import ShapeDataset, TrainingView, View, collate, draw_views, load_batches, sdf_target, view_tensor
from tasks.paths import SDF
from tasks.settings import Settings
from tasks.shards import open_shards
from tests.shapes import by_coords, ring_and_box, voxelized

NAMES = ["a", "b", "c", "d", "e"]
CPU = torch.device("cpu")


def draw(
    num: int, *, start: int = 0, batch_size: int = 3, augment: bool = True, seed: int = 0
) -> list[list[TrainingView]]:
    return list(islice(draw_views(NAMES, batch_size=batch_size, augment=augment, seed=seed, start=start), num))


# --- which shapes come when ------------------------------------------------------------------------------------------


def test_every_shape_comes_once_per_epoch():
    names = [item.view.name for batch in draw(10) for item in batch]
    for epoch in range(6):
        assert sorted(names[epoch * 5 : epoch * 5 + 5]) == NAMES


def test_epochs_have_other_orders():
    names = [item.view.name for batch in draw(10) for item in batch]
    assert len({tuple(names[epoch * 5 : epoch * 5 + 5]) for epoch in range(6)}) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 5, 12])  # within an epoch, across two, a whole one, several
@pytest.mark.parametrize("start", [1, 4, 17])
def test_starting_later_gives_what_would_have_come(batch_size, start):
    whole = draw(start + 6, batch_size=batch_size)
    assert all(len(batch) == batch_size for batch in whole)
    assert draw(6, start=start, batch_size=batch_size) == whole[start:]


def test_the_seed_decides():
    assert draw(10) == draw(10)
    assert draw(10) != draw(10, seed=1)


def test_augmentation_draws_all_symmetries_equally_and_none_without():
    counts = Counter(item.view.symmetry for batch in draw(4800, batch_size=5) for item in batch)
    assert set(counts) == set(range(len(SYMMETRIES)))
    assert max(counts.values()) < 1.3 * 24_000 / 48
    assert {item.view.symmetry for batch in draw(10, augment=False) for item in batch} == {0}


# --- a shape as tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", [0, 5, 30])
def test_a_symmetry_moves_the_voxels_and_keeps_their_values(symmetry):
    shape = voxelized(ring_and_box())
    tensor = view_tensor(shape, shape.coords, shape.sdf, symmetry=symmetry)
    moved = transform_coords(shape.coords, symmetry, resolution=32)
    assert tensor.coords.dtype == torch.int32
    np.testing.assert_array_equal(tensor.coords.numpy(), np.pad(moved, ((0, 0), (1, 0))))
    np.testing.assert_array_equal(tensor.feats.numpy(), shape.sdf[:, None])
    assert tensor.grid.extent == 32


def test_the_target_is_every_voxel_of_the_bricks_once():
    target = sdf_target(voxelized(ring_and_box()))
    covered = torch.cat([target.band.coords, target.beyond.coords])
    assert len(covered) == len(covered.unique(dim=0)) == 512 * len((covered // 8).unique(dim=0))


def sample(*, symmetry: int, outside_share: float, seed: int = 7):
    shards = open_shards(SDF)
    view = View(shards.names("train")[0], symmetry)
    return ShapeDataset(shards, outside_share=outside_share)[TrainingView(view, seed)]


def test_a_share_of_the_bricks_is_compared_beyond_the_band(small_project: Path):
    whole, part = (sample(symmetry=5, outside_share=share) for share in (1.0, 0.3))
    assert torch.equal(whole.band.coords, part.band.coords)
    everything, drawn = by_coords(whole.beyond), by_coords(part.beyond)
    assert 0 < len(drawn) < len(everything)
    bricks = {tuple(c // 8 for c in coord) for coord in drawn}
    assert drawn == {coord: value for coord, value in everything.items() if tuple(c // 8 for c in coord) in bricks}


def test_the_seed_draws_the_bricks(small_project: Path):
    first, again, other = (sample(symmetry=0, outside_share=0.3, seed=seed).beyond.coords for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_holds_its_shapes_side_by_side(small_project: Path):
    samples = [sample(symmetry=symmetry, outside_share=0.3) for symmetry in (0, 5)]
    batch = collate(samples)
    assert batch.names == tuple(s.name for s in samples)
    for part in ("band", "beyond"):
        together = by_coords(getattr(batch.target, part))
        for index, alone in enumerate(samples):
            for coord, value in list(by_coords(getattr(alone, part)).items())[::50]:
                assert together[(index, *coord[1:])] == value
        assert len(together) == sum(len(getattr(alone, part).coords) for alone in samples)


# --- batches from shards ---------------------------------------------------------------------------------------------


def batches(num: int, settings: Settings, *, start: int = 0):
    params = settings.stage2.model_copy(update={"batch_size": 2, "augment": True, "outside_share": 0.5})
    return list(islice(load_batches(open_shards(SDF), params, start=start, device=CPU), num))


def test_a_resumed_loader_goes_on_where_the_other_stopped(small_project: Path, small_settings: Settings):
    whole, later = batches(6, small_settings), batches(3, small_settings, start=3)
    for expected, got in zip(whole[3:], later, strict=True):
        assert got.names == expected.names
        assert torch.equal(got.target.band.coords, expected.target.band.coords)
        assert torch.equal(got.target.beyond.coords, expected.target.beyond.coords)


def test_loading_leaves_the_global_generator_alone(small_project: Path, small_settings: Settings):
    """A run that samples noise would otherwise see other noise after it was resumed."""
    before = torch.get_rng_state()
    batches(2, small_settings)
    assert torch.equal(torch.get_rng_state(), before)
