"""How well a network reconstructs shapes that it does not train on: no sampling, no augmentation."""

from collections.abc import Callable, Sequence

import torch

from model.errors import InputError
from model.sparse import SparseTensor
from model.vae import SDFTarget, reconstruction_loss, sign_error_share
from tasks.data import load_targets
from tasks.shards import Shards

Reconstruct = Callable[[SDFTarget], SparseTensor]  # from the band, by the plan


@torch.no_grad()
def validate(
    reconstruct: Reconstruct, shards: Shards, names: Sequence[str], *, device: torch.device
) -> dict[str, float]:
    """Means over shapes: |error| of the stored value and share of wrong signs in the band, |error| beyond it.

    Raises InputError naming the shape that a GPU has too little memory for.
    """
    rows = []
    with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
        for name, target in zip(names, load_targets(shards, names, device=device), strict=True):
            try:
                fit = reconstruction_loss(reconstruct(target), target, kind="l1")
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"{name}, {len(target.band.grid):,} voxels, does not fit into the GPU's memory; validation decodes "
                    "whole shapes: lower voxelize.resolution, or take a GPU with more"
                ) from error
            signs = sign_error_share(fit.matched, target.band.feats)
            rows.append(torch.stack([fit.recon, signs, fit.outside]))
    l1, sign_errors, outside = torch.stack(rows).mean(0).tolist()
    return {"val_l1": l1, "val_sign_errors": sign_errors, "val_outside": outside}
