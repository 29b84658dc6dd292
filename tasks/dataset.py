"""Shapes from shards, in batches that follow from seed and step alone, so that a resumed run sees the same."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

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

T = TypeVar("T")

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
        return "batch_voxels and shape_voxels, or outside_share"

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
    def __init__(self, shards: Shards, *, shape_voxels: int, outside_share: float):
        self.shards = shards
        self.shape_voxels = shape_voxels
        self.outside_share = outside_share

    def __getitem__(self, item: TrainingView) -> Sample:
        rng = np.random.default_rng(item.seed)
        sdf = crop(self.shards.read(item.view.name), self.shape_voxels, rng)
        drawn = rng.random(len(sdf.brick_coords)) < self.outside_share
        return Sample(
            item.view.name,
            view_tensor(sdf, sdf.coords, sdf.sdf, symmetry=item.view.symmetry),
            view_tensor(sdf, *sdf.beyond(drawn), symmetry=item.view.symmetry),
        )


def crop(sdf: SparseSDF, max_voxels: int, rng: np.random.Generator) -> SparseSDF:
    """The shape where it has so few voxels in the band, else as many of its bricks as hold them, around one of them.

    A cube of bricks: those nearest by the largest difference of coordinates, the smaller sum of squares first.
    """
    if len(sdf.coords) <= max_voxels:
        return sdf
    away = np.abs(sdf.brick_coords - sdf.brick_coords[rng.integers(len(sdf.brick_coords))])
    order = np.lexsort(((away**2).sum(1), away.max(1)))
    num_voxels = sdf.brick_band.sum((1, 2, 3))
    kept = np.zeros(len(order), bool)
    kept[order[np.cumsum(num_voxels[order]) <= max_voxels]] = True
    return sdf.part(kept)


def view_tensor(sdf: SparseSDF, coords: np.ndarray, values: np.ndarray, *, symmetry: int = 0) -> SparseTensor:
    """Some voxels of a shape as a tensor with batch index 0."""
    return from_arrays(transform_coords(coords, symmetry, resolution=sdf.resolution), values, extent=sdf.resolution)


def sdf_target(sdf: SparseSDF) -> SDFTarget:
    """All voxels of one shape."""
    return SDFTarget(view_tensor(sdf, sdf.coords, sdf.sdf), view_tensor(sdf, *sdf.beyond()))


@dataclass(frozen=True)
class Each(Dataset[T]):
    """What `load` makes of each item, in order."""

    items: Sequence[Any]
    load: Callable[[Any], T]  # picklable, for the workers

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> T:
        return self.load(self.items[index])


def each_target(shards: Shards, names: Sequence[str], *, device: torch.device) -> Iterable[SDFTarget]:
    """All voxels of each shape, loaded ahead where there is a GPU."""
    return DataLoader(Each(names, partial(_read_target, shards)), batch_size=None, **_loading(device))


def each_band(shards: Shards, views: Sequence[View], *, device: torch.device) -> Iterable[SparseTensor]:
    """The band of each view, loaded ahead where there is a GPU."""
    return DataLoader(Each(views, partial(_read_band, shards)), batch_size=None, **_loading(device))


def _read_target(shards: Shards, name: str) -> SDFTarget:
    return sdf_target(shards.read(name))


def _read_band(shards: Shards, view: View) -> SparseTensor:
    sdf = shards.read(view.name)
    return view_tensor(sdf, sdf.coords, sdf.sdf, symmetry=view.symmetry)


def _loading(device: torch.device) -> dict[str, Any]:
    on_cuda = device.type == "cuda"
    return {
        "num_workers": WORKERS_PER_GPU if on_cuda else 0,
        "pin_memory": on_cuda,
        "generator": torch.Generator(),  # or it would draw from the global one, and a resumed run see other noise
    }


def collate(samples: Sequence[Sample]) -> ShapeBatch:
    names, bands, beyonds = zip(*samples, strict=True)
    return ShapeBatch(names, SDFTarget(batch_tensors(list(bands)), batch_tensors(list(beyonds))))


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
