"""Which symmetries of which shapes are encoded, and how."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from model.sparse import SYMMETRIES
from model.vae import SparseSDFVAE, refuse_zero_latents
from tasks.data.dataset import View, load_bands
from tasks.data.latents import ShapeLatents
from tasks.shards import Shards

BATCH_VOXELS = 2_000_000  # of the band, encoded together on a GPU


def choose_views(names: list[str], num_symmetries: int) -> list[View]:
    """The same symmetries for every shape: the shape as it is first, then a fixed random order of the other 47."""
    others = np.random.default_rng(0).permutation(np.arange(1, len(SYMMETRIES)))
    symmetries = [0, *others.tolist()][:num_symmetries]
    return [View(name, symmetry) for name in names for symmetry in symmetries]


@torch.no_grad()
def encode_views(
    vae: SparseSDFVAE, shards: Shards, views: list[View], *, batch_voxels: int | None = None
) -> Iterator[ShapeLatents]:
    """Posterior means of each view, in order; by default on a GPU, which one shape does not fill, several at a time.

    Raises InputError where they are all 0.
    """
    device = next(vae.parameters()).device
    if batch_voxels is None:
        batch_voxels = BATCH_VOXELS if device.type == "cuda" else 1
    coming = iter(views)
    for band in load_bands(shards, views, batch_voxels=batch_voxels, device=device):
        mean = vae.encode(band).mean
        refuse_zero_latents(mean.feats)
        rows = mean.grid.shape_rows
        order, ends = rows.order.cpu().numpy(), rows.offsets.tolist()
        coords, feats = mean.coords.cpu().numpy(), mean.feats.cpu().numpy()
        for start, end in pairwise(ends):
            view, own = next(coming), order[start:end]
            yield ShapeLatents(
                view.name, view.symmetry, torch.from_numpy(coords[own, 1:]), torch.from_numpy(feats[own])
            )
