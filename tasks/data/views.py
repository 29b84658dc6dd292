"""Which symmetries of which shapes are encoded, and how."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice, pairwise
from typing import TypeVar

import numpy as np
import torch

from model.sparse import SYMMETRIES, SparseTensor
from model.vae import SparseSDFVAE, refuse_zero_latents
from tasks.data.dataset import View, load_bands
from tasks.data.latents import ShapeLatents
from tasks.shards import Shards

BATCH_VOXELS = 2_000_000  # of the band, encoded together on a GPU

Item = TypeVar("Item")


def choose_views(names: list[str], num_symmetries: int) -> list[View]:
    """The same symmetries for every shape: the shape as it is first, then a fixed random order of the other 47."""
    others = np.random.default_rng(0).permutation(np.arange(1, len(SYMMETRIES)))
    symmetries = [0, *others.tolist()][:num_symmetries]
    return [View(name, symmetry) for name in names for symmetry in symmetries]


def encode_views(
    vae: SparseSDFVAE,
    shards: Shards,
    views: list[View],
    *,
    batch_voxels: int | None = None,
    block: int = sys.maxsize,
) -> Iterator[ShapeLatents]:
    """Posterior means of each view, in order; by default on a GPU, which one shape does not fill, several at a time.

    What is encoded together may change how they round: it is never views of two blocks, each of `block` views. On a GPU
    a thread encodes the next batch while one is used. Raises InputError where they are all 0.
    """
    device = next(vae.parameters()).device
    if batch_voxels is None:
        batch_voxels = BATCH_VOXELS if device.type == "cuda" else 1
    bands = load_bands(shards, views, batch_voxels=batch_voxels, block=block, device=device)
    encoded = _encoded(vae, bands, views)
    return chain.from_iterable(_one_ahead(encoded, device) if device.type == "cuda" else encoded)


@torch.no_grad()
def _encoded(vae: SparseSDFVAE, bands: Iterator[SparseTensor], views: list[View]) -> Iterator[list[ShapeLatents]]:
    coming = iter(views)
    for band in bands:
        mean = vae.encode(band).mean
        refuse_zero_latents(mean.feats)
        rows = mean.grid.shape_rows
        order, ends = rows.order.cpu().numpy(), rows.offsets.tolist()
        coords, feats = mean.coords.cpu().numpy()[order, 1:], mean.feats.cpu().numpy()[order]
        yield [
            ShapeLatents(*next(coming), torch.from_numpy(coords[start:end]), torch.from_numpy(feats[start:end]))
            for start, end in pairwise(ends)
        ]


def _one_ahead(items: Iterator[Item], device: torch.device) -> Iterator[Item]:
    """The items, each made on the GPU by a thread while the one before it is used."""
    with ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,)) as thread:
        following = thread.submit(list, islice(items, 1))
        while item := following.result():
            following = thread.submit(list, islice(items, 1))
            yield item[0]
