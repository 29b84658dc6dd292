"""Shapes from shards, in batches that follow from seed and step alone, so that a resumed run sees the same."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from model.distributed import num_ranks, rank
from model.errors import InputError
from model.losses import SDFTarget
from model.sdf import SparseSDF
from model.sparse import SparseTensor, batch_tensors, from_arrays
from model.symmetry import SYMMETRIES, transform_coords
from tasks.settings import ShapeTraining
from tasks.shards import Shards

WORKERS_PER_GPU = 12  # on a CPU-only machine the main process loads: every core is busy with the network


class View(NamedTuple):
    """A shape as one of the cube's symmetries shows it."""

    name: str
    symmetry: int


class TrainingView(NamedTuple):
    view: View
    seed: int  # of the bricks whose voxels beyond the band are compared


@dataclass(frozen=True)
class ShapeBatch:
    names: tuple[str, ...]
    target: SDFTarget

    @property
    def size(self) -> str:
        band, beyond = len(self.target.band.grid), len(self.target.beyond.grid)
        return f"{band:,} voxels in the band and {beyond:,} beyond it to decode"

    def to(self, device: torch.device) -> "ShapeBatch":
        return ShapeBatch(self.names, self.target.to(device))

    def pin_memory(self) -> "ShapeBatch":
        """What DataLoader calls on a batch, so that it travels to the GPU while the GPU works."""
        return ShapeBatch(self.names, self.target.pin_memory())


class Sample(NamedTuple):
    name: str
    band: SparseTensor
    beyond: SparseTensor


class ShapeDataset(Dataset[Sample]):
    def __init__(self, shards: Shards, *, outside_share: float):
        self.shards = shards
        self.outside_share = outside_share

    def __getitem__(self, item: TrainingView) -> Sample:
        sdf = self.shards.read(item.view.name)
        drawn = np.random.default_rng(item.seed).random(len(sdf.brick_coords)) < self.outside_share
        return Sample(
            item.view.name,
            view_tensor(sdf, sdf.coords, sdf.sdf, symmetry=item.view.symmetry),
            view_tensor(sdf, *sdf.beyond(drawn), symmetry=item.view.symmetry),
        )


def view_tensor(sdf: SparseSDF, coords: np.ndarray, values: np.ndarray, *, symmetry: int = 0) -> SparseTensor:
    """Some voxels of a shape as a tensor with batch index 0."""
    return from_arrays(transform_coords(coords, symmetry, resolution=sdf.resolution), values, extent=sdf.resolution)


def sdf_target(sdf: SparseSDF) -> SDFTarget:
    """All voxels of one shape."""
    return SDFTarget(view_tensor(sdf, sdf.coords, sdf.sdf), view_tensor(sdf, *sdf.beyond()))


def collate(samples: Sequence[Sample]) -> ShapeBatch:
    names, bands, beyonds = zip(*samples, strict=True)
    return ShapeBatch(names, SDFTarget(batch_tensors(list(bands)), batch_tensors(list(beyonds))))


def draw_views(
    names: Sequence[str], *, batch_size: int, augment: bool, seed: int, start: int
) -> Iterator[list[TrainingView]]:
    """Batches from step `start` on, without end.

    Every shape comes once per epoch; order, symmetries and seeds follow from the seed and the epoch alone.
    """
    views = _views_from(names, augment=augment, seed=seed, position=start * batch_size)
    while True:
        yield list(islice(views, batch_size))


def _views_from(names: Sequence[str], *, augment: bool, seed: int, position: int) -> Iterator[TrainingView]:
    first_epoch, skipped = divmod(position, len(names))
    for epoch in count(first_epoch):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(names))
        symmetries = rng.integers(len(SYMMETRIES), size=len(names)) if augment else np.zeros(len(names), int)
        seeds = rng.integers(2**32, size=len(names))
        for i in order[skipped:]:
            yield TrainingView(View(names[i], int(symmetries[i])), int(seeds[i]))
        skipped = 0


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

    Several ranks share each batch. Raises InputError where it has fewer shapes than there are ranks.
    """
    if params.batch_size < num_ranks():
        raise InputError(
            f"batch_size is {params.batch_size} but {num_ranks()} processes share a batch; raise it in params.yaml, "
            "or start fewer processes"
        )
    sizes = {str(name): int(size) for name, size in shards.index.num_voxels.items()}
    views = draw_views(
        shards.names("train"), batch_size=params.batch_size, augment=params.augment, seed=params.seed, start=start
    )
    loader = DataLoader(
        ShapeDataset(shards, outside_share=params.outside_share),
        batch_sampler=(share_of(batch, sizes, rank=rank(), num_ranks=num_ranks()) for batch in views),
        collate_fn=collate,
        num_workers=WORKERS_PER_GPU if device.type == "cuda" else 0,
        generator=torch.Generator(),  # or it would draw from the global one, and a resumed run see other noise
        pin_memory=device.type == "cuda",
    )
    yield from _prepared_ahead(loader, device) if device.type == "cuda" else loader


def _prepared_ahead(batches: Iterable[ShapeBatch], device: torch.device) -> Iterator[ShapeBatch]:
    """Batches moved and planned on a stream of their own, while the network still works on the one before."""
    stream = torch.cuda.Stream(device)
    in_use: deque[tuple[torch.cuda.Event, ShapeBatch]] = deque()  # memory of a batch is free once its step has ended
    for loaded in batches:
        if len(in_use) > 1:
            step_ended, _ = in_use.popleft()
            stream.wait_event(step_ended)
        with torch.cuda.stream(stream):
            batch = loaded.to(device)
            batch.target.plan  # noqa: B018  # made here, and kept
        torch.cuda.current_stream(device).wait_stream(stream)
        yield batch
        step_ended = torch.cuda.Event()
        step_ended.record()
        in_use.append((step_ended, batch))


def training_batches(
    shards: Shards, params: ShapeTraining, device: torch.device
) -> Callable[[int], Iterator[ShapeBatch]]:
    """Batches of the training split from a given step on, as tasks.training.train asks for them."""

    def batches_from(start: int) -> Iterator[ShapeBatch]:
        return load_batches(shards, params, start=start, device=device)

    return batches_from
