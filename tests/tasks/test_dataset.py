from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from model.symmetry import SYMMETRIES, transform_coords
from tasks.dataset import View, collate, draw_views, load_batches, sdf_target
from tasks.paths import SDF
from tasks.shards import open_shards
from tests.shapes import by_coords, ring_and_box, voxelized

NAMES = ["a", "b", "c", "d", "e"]
CPU = torch.device("cpu")


def draw(num: int, *, start: int = 0, batch_size: int = 3, augment: bool = True, seed: int = 0) -> list[list[View]]:
    return list(islice(draw_views(NAMES, batch_size=batch_size, augment=augment, seed=seed, start=start), num))


# --- which shapes come when ------------------------------------------------------------------------------------------


def test_every_shape_comes_once_per_epoch():
    names = [view.name for batch in draw(10) for view in batch]
    for epoch in range(6):
        assert sorted(names[epoch * 5 : epoch * 5 + 5]) == NAMES


def test_epochs_have_other_orders():
    names = [view.name for batch in draw(10) for view in batch]
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
    counts = Counter(view.symmetry for batch in draw(4800, batch_size=5) for view in batch)
    assert set(counts) == set(range(len(SYMMETRIES)))
    assert max(counts.values()) < 1.3 * 24_000 / 48
    assert {view.symmetry for batch in draw(10, augment=False) for view in batch} == {0}


# --- a shape as tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetry", [0, 5, 30])
def test_a_symmetry_moves_band_and_beyond_alike(symmetry):
    shape = voxelized(ring_and_box())
    target = sdf_target(shape, symmetry=symmetry)
    for tensor, (coords, values) in ((target.band, (shape.coords, shape.sdf)), (target.beyond, shape.beyond())):
        moved = transform_coords(coords, symmetry, resolution=32)
        assert tensor.coords.dtype == torch.int32
        np.testing.assert_array_equal(tensor.coords.numpy(), np.pad(moved, ((0, 0), (1, 0))))
        np.testing.assert_array_equal(tensor.feats.numpy(), values[:, None])
        assert tensor.grid.extent == 32
    covered = torch.cat([target.band.coords, target.beyond.coords])
    assert len(covered) == len(covered.unique(dim=0)) == 512 * len((covered // 8).unique(dim=0))


def test_a_batch_holds_its_shapes_side_by_side():
    targets = [sdf_target(voxelized(ring_and_box()), symmetry=s) for s in (0, 5)]
    batch = collate([("a", targets[0]), ("b", targets[1])])
    assert batch.names == ("a", "b")
    for part in ("band", "beyond"):
        together = by_coords(getattr(batch.target, part))
        for index, target in enumerate(targets):
            for coord, value in list(by_coords(getattr(target, part)).items())[::50]:
                assert together[(index, *coord[1:])] == value
        assert len(together) == sum(len(getattr(target, part).coords) for target in targets)


# --- batches from shards ---------------------------------------------------------------------------------------------


def batches(num: int, *, start: int = 0):
    shards = open_shards(SDF)
    loader = load_batches(shards, shards.names("train"), batch_size=2, augment=True, seed=3, start=start, device=CPU)
    return list(islice(loader, num))


def test_a_resumed_loader_goes_on_where_the_other_stopped(small_project: Path):
    whole, later = batches(6), batches(3, start=3)
    for expected, got in zip(whole[3:], later, strict=True):
        assert got.names == expected.names
        assert torch.equal(got.target.band.coords, expected.target.band.coords)
        assert torch.equal(got.target.beyond.feats, expected.target.beyond.feats)


def test_loading_leaves_the_global_generator_alone(small_project: Path):
    """A run that samples noise would otherwise see other noise after it was resumed."""
    before = torch.get_rng_state()
    batches(2)
    assert torch.equal(torch.get_rng_state(), before)
