"""Which symmetries of which shapes are encoded, and how."""

from collections.abc import Iterator

import numpy as np
import torch

from model.symmetry import SYMMETRIES
from model.vae import SparseSDFVAE
from tasks.dataset import View, load_bands
from tasks.latents import ShapeLatents
from tasks.shards import Shards


def choose_views(names: list[str], num_symmetries: int) -> list[View]:
    """The same symmetries for every shape: the shape as it is first, then a fixed random order of the other 47."""
    others = np.random.default_rng(0).permutation(np.arange(1, len(SYMMETRIES)))
    symmetries = [0, *others.tolist()][:num_symmetries]
    return [View(name, symmetry) for name in names for symmetry in symmetries]


@torch.no_grad()
def encode_views(vae: SparseSDFVAE, shards: Shards, views: list[View]) -> Iterator[ShapeLatents]:
    """Posterior means, one view after the other."""
    device = next(vae.parameters()).device
    for view, band in zip(views, load_bands(shards, views, device=device), strict=True):
        mean = vae.encode(band).mean
        yield ShapeLatents(view.name, view.symmetry, mean.coords[:, 1:].cpu(), mean.feats.cpu())
