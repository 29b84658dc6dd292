"""Shapes from shards, in batches that follow from seed and step alone, so that a resumed run sees the same."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

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


@dataclass(frozen=True)
class ShapeBatch:
    names: tuple[str, ...]
    target: SDFTarget

    def to(self, device: torch.device) -> "ShapeBatch":
        return ShapeBatch(self.names, self.target.to(device))

    def pin_memory(self) -> "ShapeBatch":
        """What DataLoader calls on a batch, so that it travels to the GPU while the GPU works."""
        return ShapeBatch(self.names, SDFTarget(self.target.band.pin_memory(), self.target.beyond.pin_memory()))


class ShapeDataset(Dataset[tuple[str, SDFTarget]]):
    def __init__(self, shards: Shards):
        self.shards = shards

    def __getitem__(self, view: View) -> tuple[str, SDFTarget]:
        return view.name, sdf_target(self.shards.read(view.name), symmetry=view.symmetry)


def sdf_target(sdf: SparseSDF, *, symmetry: int = 0) -> SDFTarget:
    """One shape as tensors with batch index 0."""

    def tensor(coords: np.ndarray, values: np.ndarray) -> SparseTensor:
        moved = transform_coords(coords, symmetry, resolution=sdf.resolution)
        return from_arrays(moved, values, extent=sdf.resolution)

    return SDFTarget(band=tensor(sdf.coords, sdf.sdf), beyond=tensor(*sdf.beyond()))


def collate(samples: Sequence[tuple[str, SDFTarget]]) -> ShapeBatch:
    names, targets = zip(*samples, strict=True)
    band = batch_tensors([target.band for target in targets])
    beyond = batch_tensors([target.beyond for target in targets])
    return ShapeBatch(names, SDFTarget(band, beyond))


def draw_views(names: Sequence[str], *, batch_size: int, augment: bool, seed: int, start: int) -> Iterator[list[View]]:
    """Batches from step `start` on, without end.

    Every shape comes once per epoch; order and symmetries follow from the seed and the epoch alone.
    """
    views = _views_from(names, augment=augment, seed=seed, position=start * batch_size)
    while True:
        yield list(islice(views, batch_size))


def _views_from(names: Sequence[str], *, augment: bool, seed: int, position: int) -> Iterator[View]:
    first_epoch, skipped = divmod(position, len(names))
    for epoch in count(first_epoch):
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(names))
        symmetries = rng.integers(len(SYMMETRIES), size=len(names)) if augment else np.zeros(len(names), int)
        for i in order[skipped:]:
            yield View(names[i], int(symmetries[i]))
        skipped = 0


def load_batches(
    shards: Shards, names: Sequence[str], *, batch_size: int, augment: bool, seed: int, start: int, device: torch.device
) -> Iterator[ShapeBatch]:
    """Batches without end, on the device, loaded ahead by worker processes where there is a GPU to feed."""
    views = draw_views(names, batch_size=batch_size, augment=augment, seed=seed, start=start)
    loader = DataLoader(
        ShapeDataset(shards),
        batch_sampler=views,
        collate_fn=collate,
        num_workers=WORKERS_PER_GPU if device.type == "cuda" else 0,
        generator=torch.Generator(),  # or it would draw from the global one, and a resumed run see other noise
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        yield batch.to(device)


def training_batches(
    shards: Shards, params: ShapeTraining, device: torch.device
) -> Callable[[int], Iterator[ShapeBatch]]:
    """Batches of the training split from a given step on, as tasks.training.train asks for them."""

    def batches_from(start: int) -> Iterator[ShapeBatch]:
        return load_batches(
            shards,
            shards.names("train"),
            batch_size=params.batch_size,
            augment=params.augment,
            seed=params.seed,
            start=start,
            device=device,
        )

    return batches_from
