"""Which symmetries of which shapes are encoded, and how."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from model.sparse import SparseTensor, batch_tensors
from model.symmetry import SYMMETRIES
from model.vae import SparseSDFVAE
from tasks.dataset import View, load_bands
from tasks.latents import ShapeLatents
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
    """Posterior means of each view, in order; by default on a GPU, which one shape does not fill, several at a time."""
    device = next(vae.parameters()).device
    bands = load_bands(shards, views, device=device)
    if batch_voxels is None:
        batch_voxels = BATCH_VOXELS if device.type == "cuda" else 1
    for group in _groups(zip(views, bands, strict=True), batch_voxels):
        mean = vae.encode(batch_tensors([band for _, band in group])).mean
        coords, feats = mean.coords.cpu(), mean.feats.cpu()
        for index, (view, _) in enumerate(group):
            rows = coords[:, 0] == index
            yield ShapeLatents(view.name, view.symmetry, coords[rows, 1:], feats[rows])


def _groups(bands: Iterable[tuple[View, SparseTensor]], max_voxels: int) -> Iterator[list[tuple[View, SparseTensor]]]:
    """One after the other, as many as have so many voxels together, or one that has more."""
    group: list[tuple[View, SparseTensor]] = []
    num_voxels = 0
    for view, band in bands:
        if group and num_voxels + len(band.grid) > max_voxels:
            yield group
            group, num_voxels = [], 0
        group.append((view, band))
        num_voxels += len(band.grid)
    if group:
        yield group
