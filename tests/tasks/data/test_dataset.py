import multiprocessing
import os
import signal
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from model.sparse import SYMMETRIES
from tasks.data import choose_views, dataset, load_targets
from tasks.data.dataset import ShapeDataset, TrainingView, View, draw_batches, load_bands, training_batches
from tasks.data.packed import PackedBatch, collate
from tasks.run import Settings, paths
from tasks.shards import open_shards
from tests.shapes import by_coords

SIZES = {"a": 8, "b": 3, "c": 20, "d": 13, "e": 19}  # voxels
CPU = torch.device("cpu")


def draw(
    num: int, *, start: int = 0, batch_voxels: int = 30, augment: bool = True, seed: int = 0
) -> list[list[TrainingView]]:
    batches = draw_batches(SIZES, batch_voxels=batch_voxels, augment=augment, seed=seed, start=start)
    return list(islice(batches, num))


def names_of(batches: list[list[TrainingView]]) -> list[str]:
    return [item.view.name for batch in batches for item in batch]


# --- which shapes come when ------------------------------------------------------------------------------------------


def test_every_shape_comes_once_per_epoch():
    names = names_of(draw(30))
    for epoch in range(6):
        assert sorted(names[epoch * 5 : epoch * 5 + 5]) == sorted(SIZES)


def test_epochs_have_other_orders():
    names = names_of(draw(30))
    assert len({tuple(names[epoch * 5 : epoch * 5 + 5]) for epoch in range(6)}) > 1


@pytest.mark.parametrize("batch_voxels", [20, 30, 200])
def test_a_batch_is_as_full_as_it_can_be(batch_voxels):
    batches = draw(30, batch_voxels=batch_voxels)
    for batch, following in pairwise(batches):
        voxels = sum(SIZES[item.view.name] for item in batch)
        assert voxels <= batch_voxels < voxels + SIZES[following[0].view.name]


@pytest.mark.parametrize("batch_voxels", [20, 30, 200])  # within an epoch, across two, several
@pytest.mark.parametrize("start", [1, 4, 17])
def test_starting_later_gives_what_would_have_come(batch_voxels, start):
    whole = draw(start + 6, batch_voxels=batch_voxels)
    assert draw(6, start=start, batch_voxels=batch_voxels) == whole[start:]


def test_the_seed_decides():
    assert draw(10) == draw(10)
    assert draw(10) != draw(10, seed=1)


def test_augmentation_draws_all_symmetries_equally_and_none_without():
    counts = Counter(item.view.symmetry for batch in draw(4800, batch_voxels=63) for item in batch)
    assert set(counts) == set(range(len(SYMMETRIES)))
    assert max(counts.values()) < 1.3 * counts.total() / 48
    assert {item.view.symmetry for batch in draw(10, augment=False) for item in batch} == {0}


# --- a shape as tensors ----------------------------------------------------------------------------------------------


def test_the_target_is_every_voxel_of_the_bricks_once(small_project: Path):
    shards = open_shards(paths.SDF)
    for name, target in zip(shards.names("val"), load_targets(shards, shards.names("val"), device=CPU), strict=True):
        covered = torch.cat([target.band.coords, target.beyond.coords])
        assert len(covered) == len(covered.unique(dim=0)) == 512 * len((covered // 8).unique(dim=0))
        assert len(covered) == 512 * len(shards.read(name).brick_coords)


def sample(*, symmetry: int, outside_share: float, seed: int = 7, shape_voxels: int = 100_000) -> PackedBatch:
    shards = open_shards(paths.SDF)
    view = View(shards.names("train")[0], symmetry)
    dataset = ShapeDataset(shards.resolution, shape_voxels=shape_voxels, outside_share=outside_share)
    return dataset[shards.locate(view.name), TrainingView(view, seed)]


def test_a_share_of_the_bricks_is_compared_beyond_the_band(small_project: Path):
    whole, part = (sample(symmetry=5, outside_share=share).unfold() for share in (1.0, 0.3))
    assert torch.equal(whole.band.coords, part.band.coords)
    everything, drawn = by_coords(whole.beyond), by_coords(part.beyond)
    assert 0 < len(drawn) < len(everything)
    bricks = {tuple(c // 8 for c in coord) for coord in drawn}
    assert drawn == {coord: value for coord, value in everything.items() if tuple(c // 8 for c in coord) in bricks}


def test_a_large_shape_comes_cropped(small_project: Path):
    whole, part = (sample(symmetry=5, outside_share=1.0, shape_voxels=voxels).unfold() for voxels in (100_000, 3000))
    assert 2000 < len(part.band.coords) <= 3000
    assert by_coords(part.band).items() <= by_coords(whole.band).items()


def test_the_seed_draws_the_bricks(small_project: Path):
    first, again, other = (sample(symmetry=0, outside_share=0.3, seed=seed).compared for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_holds_its_shapes_side_by_side(small_project: Path):
    samples = [sample(symmetry=symmetry, outside_share=0.3) for symmetry in (0, 5)]
    batch = collate(samples)
    assert batch.names == samples[0].names + samples[1].names
    targets = batch.unfold(), [alone.unfold() for alone in samples]
    for part in ("band", "beyond"):
        together = by_coords(getattr(targets[0], part))
        for index, alone in enumerate(targets[1]):
            for coord, value in list(by_coords(getattr(alone, part)).items())[::50]:
                assert together[(index, *coord[1:])] == value
        assert len(together) == sum(len(getattr(alone, part).coords) for alone in targets[1])


def test_bands_come_together_the_same_way_from_the_beginning_of_any_block(small_project: Path):
    shards = open_shards(paths.SDF)
    views = choose_views(shards.names("train"), 4)
    room = 3 * int(shards.index.num_voxels.max())

    def together(views: list[View]) -> list[int]:
        bands = load_bands(shards, views, batch_voxels=room, block=8, device=CPU)
        return [band.grid.num_shapes for band in bands]

    blocks = [together(views[start : start + 8]) for start in (0, 8, 16)]
    assert [sum(block) for block in blocks] == [8, 8, 4]
    assert max(blocks[0]) >= 3
    assert together(views) == blocks[0] + blocks[1] + blocks[2]


# --- batches from shards ---------------------------------------------------------------------------------------------


def batches(num: int, settings: Settings, *, start: int = 0):
    params = settings.stage2.model_copy(update={"shape_voxels": 6000, "augment": True, "outside_share": 0.5})
    return list(islice(training_batches(open_shards(paths.SDF), params, CPU)(start), num))


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


def test_workers_go_on_when_all_processes_of_a_job_are_told_to_stop():
    loading = dataset._loading(torch.device("cuda")) | {"num_workers": 2, "pin_memory": False}
    items = iter(DataLoader(range(32), batch_size=None, **loading))
    seen = [next(items), next(items)]  # one from each worker: both have started
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGTERM)
    assert seen + list(items) == list(range(32))
