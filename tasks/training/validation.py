"""How well a network reconstructs shapes that it does not train on: no sampling, no augmentation, all in float32."""

from collections.abc import Callable, Mapping, Sequence

import torch

from model.errors import InputError
from model.sparse import SparseTensor
from model.vae import SDFTarget, reconstruction_loss
from tasks.data import load_targets
from tasks.shards import Shards

Reconstruct = Callable[[SDFTarget], SparseTensor]  # from the band, by the plan
Figures = dict[str, float]


@torch.no_grad()
def validate_each(
    reconstruct: Reconstruct, shards: Shards, names: Sequence[str], *, device: torch.device
) -> dict[str, Figures]:
    """By shape: mean |error| of the stored value and share of wrong signs in the band, mean |error| beyond it.

    Raises InputError naming the shape that a GPU has too little memory for.
    """
    rows = []
    for name, target in zip(names, load_targets(shards, names, device=device), strict=True):
        try:
            fit = reconstruction_loss(reconstruct(target), target, kind="l1")
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{name}, {len(target.band.grid):,} voxels, does not fit into the GPU's memory; validation decodes "
                "whole shapes: lower voxelize.resolution, or take a GPU with more"
            ) from error
        rows.append(torch.stack([fit.recon, fit.sign_errors, fit.outside]))
    columns = ("val_l1", "val_sign_errors", "val_outside")
    table = torch.stack(rows).tolist()
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(names, table, strict=True)}


def mean_figures(by_shape: Mapping[str, Figures]) -> Figures:
    """The mean over shapes of each figure."""
    rows = list(by_shape.values())
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def validate(reconstruct: Reconstruct, shards: Shards, names: Sequence[str], *, device: torch.device) -> Figures:
    """Means over shapes of what validate_each gives."""
    return mean_figures(validate_each(reconstruct, shards, names, device=device))
