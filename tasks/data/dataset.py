"""Shapes from shards, in batches that follow from seed and step alone, so that a resumed run sees the same."""

import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.distributed import num_ranks, rank
from model.errors import InputError
from model.sparse import SYMMETRIES, SparseTensor
from model.vae import SDFTarget
from tasks.data.packed import PackedBatch, batch_of_one, collate, crop
from tasks.run import ShapeTraining
from tasks.shards import Located, Shards, read_packed

Item = TypeVar("Item")
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


@dataclass(frozen=True)
class ShapeDataset(Dataset[PackedBatch]):
    """Shapes, whole if nothing else is said; its indices say where they are, so that no worker holds a list of all."""

    resolution: int
    shape_voxels: int = sys.maxsize  # of the band: of larger ones only so many are taken
    outside_share: float = 1.0  # of the bricks whose voxels beyond the band are compared

    def __getitem__(self, index: tuple[Located, TrainingView]) -> PackedBatch:
        place, item = index
        rng = np.random.default_rng(item.seed)
        shape = crop(read_packed(place), self.shape_voxels, rng)
        drawn = rng.random(len(shape.brick_coords)) < self.outside_share
        return batch_of_one(place.name, shape, symmetry=item.view.symmetry, compared=drawn, resolution=self.resolution)


def load_targets(shards: Shards, names: Sequence[str], *, device: torch.device) -> Iterator[SDFTarget]:
    """All voxels of each shape on the device, in order; loaded ahead where that is a GPU."""
    views = ((shards.locate(name), TrainingView(View(name, 0), 0)) for name in names)
    for packed in DataLoader(ShapeDataset(shards.resolution), sampler=views, batch_size=None, **_loading(device)):
        yield packed.to(device).unfold()


def load_bands(
    shards: Shards, views: Sequence[View], *, batch_voxels: int, block: int, device: torch.device
) -> Iterator[SparseTensor]:
    """The bands of all views on the device, in order, several in a batch; loaded ahead for a GPU.

    A batch has as many as `batch_voxels` has room for, or one that is larger, and none of two blocks of `block` views.
    """
    sizes = shards.index.num_voxels
    blocks = (views[start : start + block] for start in range(0, len(views), block))
    batches = (batch for part in blocks for batch in _filled(part, lambda view: sizes[view.name], batch_voxels))
    dataset = ShapeDataset(shards.resolution, outside_share=0.0)
    places = ([(shards.locate(view.name), TrainingView(view, 0)) for view in batch] for batch in batches)
    for packed in DataLoader(dataset, batch_sampler=places, collate_fn=collate, **_loading(device)):
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
    views = _draw_views(list(sizes), augment=augment, seed=seed)
    return islice(_filled(views, lambda view: sizes[view.view.name], batch_voxels), start, None)


def _filled(items: Iterable[Item], size_of: Callable[[Item], int], limit: int) -> Iterator[list[Item]]:
    """One after the other, as many together as the limit has room for, or one that is larger."""
    batch: list[Item] = []
    room = limit
    for item in items:
        size = size_of(item)
        if batch and size > room:
            yield batch
            batch, room = [], limit
        batch.append(item)
        room -= size
    if batch:
        yield batch


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


def batch_loader(shards: Shards, params: ShapeTraining, *, start: int, device: torch.device) -> DataLoader[PackedBatch]:
    """This rank's parts of the batches of the training split; worker processes load ahead where there is a GPU.

    Raises InputError where a batch may have fewer shapes than there are ranks.
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
    shares = (share_of(batch, sizes, rank=rank(), num_ranks=num_ranks()) for batch in batches)
    return DataLoader(
        ShapeDataset(shards.resolution, params.shape_voxels, params.outside_share),
        batch_sampler=([(shards.locate(item.view.name), item) for item in share] for share in shares),
        collate_fn=collate,
        **_loading(device),
    )


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
    """Batches of the training split, without end, on the device, from a given step on; raises as batch_loader does."""

    def batches_from(start: int) -> Iterator[ShapeBatch]:
        loader = batch_loader(shards, params, start=start, device=device)
        return _prepared_ahead(loader, device) if device.type == "cuda" else map(_prepared, loader)

    return batches_from


def _leave_stopping_to_the_parent(_: int) -> None:
    """What stops all processes of a job at once must not take the data away from a step that is to be finished."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
