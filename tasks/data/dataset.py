"""Shapes from shards, in batches that follow from seed and step alone, so that a resumed run sees the same."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.distributed import num_ranks, rank
from model.errors import InputError
from model.sparse import SYMMETRIES, SparseTensor
from model.vae import SDFTarget
from tasks.data.packed import PackedBatch, batch_of_one, collate, crop
from tasks.run import ShapeTraining
from tasks.shards import Shards

WORKERS_PER_GPU = 12  # on a CPU-only machine the main process loads: every core is busy with the network


class View(NamedTuple):
    """A shape as one of the cube's symmetries shows it."""

    name: str
    symmetry: int


class TrainingView(NamedTuple):
    view: View
    seed: int  # of the crop, and of the bricks whose voxels beyond the band are compared


@dataclass(frozen=True)
class ShapeBatch:
    names: tuple[str, ...]
    target: SDFTarget

    @property
    def size(self) -> str:
        band, beyond = len(self.target.band.grid), len(self.target.beyond.grid)
        return f"{band:,} voxels in the band and {beyond:,} beyond it to decode"

    @property
    def limits(self) -> str:
        return "batch_voxels and shape_voxels, or outside_share, or set recompute: true,"


class ShapeDataset(Dataset[PackedBatch]):
    def __init__(self, shards: Shards, *, shape_voxels: int, outside_share: float):
        self.shards = shards
        self.shape_voxels = shape_voxels
        self.outside_share = outside_share

    def __getitem__(self, item: TrainingView) -> PackedBatch:
        rng = np.random.default_rng(item.seed)
        shape = crop(self.shards.read_packed(item.view.name), self.shape_voxels, rng)
        drawn = rng.random(len(shape.brick_coords)) < self.outside_share
        return batch_of_one(
            item.view.name, shape, symmetry=item.view.symmetry, compared=drawn, resolution=self.shards.resolution
        )


@dataclass(frozen=True)
class WholeShapes(Dataset[PackedBatch]):
    """Views one by one, in order, nothing cropped."""

    shards: Shards
    views: Sequence[View]
    beyond: bool

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, index: int) -> PackedBatch:
        name, symmetry = self.views[index]
        shape = self.shards.read_packed(name)
        compared = np.full(len(shape.brick_coords), self.beyond)
        return batch_of_one(name, shape, symmetry=symmetry, compared=compared, resolution=self.shards.resolution)


def load_targets(shards: Shards, names: Sequence[str], *, device: torch.device) -> Iterator[SDFTarget]:
    """All voxels of each shape on the device, in order; loaded ahead where that is a GPU."""
    dataset = WholeShapes(shards, [View(name, 0) for name in names], beyond=True)
    for packed in DataLoader(dataset, batch_size=None, **_loading(device)):
        yield packed.to(device).unfold()


def load_bands(
    shards: Shards, views: Sequence[View], *, batch_voxels: int, device: torch.device
) -> Iterator[SparseTensor]:
    """The bands of all views on the device, in order; loaded ahead where that is a GPU.

    A batch has as many views as have `batch_voxels` together, or one that has more.
    """
    batches: list[list[int]] = []
    room = 0
    for index, size in enumerate(shards.index.num_voxels[[view.name for view in views]]):
        if not batches or size > room:
            batches.append([])
            room = batch_voxels
        batches[-1].append(index)
        room -= size
    dataset = WholeShapes(shards, views, beyond=False)
    for packed in DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **_loading(device)):
        yield packed.to(device).unfold().band


def _loading(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "num_workers": WORKERS_PER_GPU if on_cuda else 0,
        "worker_init_fn": _leave_stopping_to_the_parent,
        "pin_memory": on_cuda,
        "generator": torch.Generator(),  # or it would draw from the global one, and a resumed run see other noise
    }


def draw_batches(
    sizes: Mapping[str, int], *, batch_voxels: int, augment: bool, seed: int, start: int
) -> Iterator[list[TrainingView]]:
    """Batches from step `start` on, without end: as many shapes, one after the other, as `batch_voxels` has room for.

    `sizes` are band voxels by name, none above `batch_voxels`. Every shape comes once per epoch; order, symmetries and
    seeds follow from the seed and the epoch alone.
    """
    return islice(_filled(_draw_views(list(sizes), augment=augment, seed=seed), sizes, batch_voxels), start, None)


def _filled(views: Iterator[TrainingView], sizes: Mapping[str, int], batch_voxels: int) -> Iterator[list[TrainingView]]:
    batch: list[TrainingView] = []
    room = batch_voxels
    for view in views:
        size = sizes[view.view.name]
        if size > room:
            yield batch
            batch, room = [], batch_voxels
        batch.append(view)
        room -= size


def _draw_views(names: Sequence[str], *, augment: bool, seed: int) -> Iterator[TrainingView]:
    for epoch in count():
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(names))
        symmetries = rng.integers(len(SYMMETRIES), size=len(names)) if augment else np.zeros(len(names), int)
        seeds = rng.integers(2**32, size=len(names))
        for i in order:
            yield TrainingView(View(names[i], int(symmetries[i])), int(seeds[i]))


def share_of(batch: list[TrainingView], sizes: Mapping[str, int], *, rank: int, num_ranks: int) -> list[TrainingView]:
    """What one rank works on: the largest shapes first, each to the rank that has the fewest voxels so far."""
    shares: list[list[TrainingView]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for view in sorted(batch, key=lambda view: -sizes[view.view.name]):
        lightest = loads.index(min(loads))
        shares[lightest].append(view)
        loads[lightest] += sizes[view.view.name]
    return shares[rank]


def load_batches(shards: Shards, params: ShapeTraining, *, start: int, device: torch.device) -> Iterator[ShapeBatch]:
    """Batches of the training split, without end, on the device; worker processes load ahead where there is a GPU.

    Several ranks share each batch. Raises InputError where it may have fewer shapes than there are ranks.
    """
    if params.batch_voxels < num_ranks() * params.shape_voxels:
        raise InputError(
            f"batch_voxels is {params.batch_voxels} but {num_ranks()} processes share a batch, with up to "
            f"{params.shape_voxels} voxels (shape_voxels) each; raise batch_voxels in params.yaml to their product, or "
            "start fewer processes"
        )
    voxels = shards.index.num_voxels[shards.names("train")].clip(upper=params.shape_voxels)
    sizes = {str(name): int(size) for name, size in voxels.items()}
    batches = draw_batches(
        sizes, batch_voxels=params.batch_voxels, augment=params.augment, seed=params.seed, start=start
    )
    loader = DataLoader(
        ShapeDataset(shards, shape_voxels=params.shape_voxels, outside_share=params.outside_share),
        batch_sampler=(share_of(batch, sizes, rank=rank(), num_ranks=num_ranks()) for batch in batches),
        collate_fn=collate,
        **_loading(device),
    )
    yield from _prepared_ahead(loader, device) if device.type == "cuda" else map(_prepared, loader)


def _prepared(packed: PackedBatch) -> ShapeBatch:
    return ShapeBatch(packed.names, packed.unfold())


def _prepared_ahead(batches: Iterable[PackedBatch], device: torch.device) -> Iterator[ShapeBatch]:
    """Batches moved, unfolded and planned by a thread on a stream of its own, while the network works on the last."""
    stream = torch.cuda.Stream(device)
    source = iter(batches)

    def prepare() -> tuple[ShapeBatch, torch.cuda.Event]:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            batch = _prepared(next(source).to(device))
            batch.target.make_ahead()
            return batch, stream.record_event()

    in_use: deque[tuple[torch.cuda.Event, ShapeBatch]] = deque()  # memory of a batch is free once its step has ended
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepare)
        while True:
            try:
                batch, ready = coming.result()
            except torch.OutOfMemoryError as error:
                raise InputError(
                    "the next batch does not fit into the GPU's memory beside this one; "
                    "lower batch_voxels and shape_voxels in params.yaml, or outside_share, or set recompute: true"
                ) from error
            if len(in_use) > 1:
                stream.wait_event(in_use.popleft()[0])  # no name may keep the batch
            coming = thread.submit(prepare)
            torch.cuda.current_stream(device).wait_event(ready)
            yield batch
            step_ended = torch.cuda.Event()
            step_ended.record()
            in_use.append((step_ended, batch))


def training_batches(
    shards: Shards, params: ShapeTraining, device: torch.device
) -> Callable[[int], Iterator[ShapeBatch]]:
    """Batches of the training split from a given step on, as tasks.training.train asks for them."""
    return lambda start: load_batches(shards, params, start=start, device=device)


def _leave_stopping_to_the_parent(_: int) -> None:
    """What stops all processes of a job at once must not take the data away from a step that is to be finished."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
