"""What is minimised: reconstruction where the decoder's voxels meet the input's, and the sign everywhere else."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from model.sparse import SparseTensor, find_rows

Recon = Literal["l1", "l2", "l1+l2"]


@dataclass(frozen=True)
class SDFTarget:
    """Every voxel of the occupied 8^3 bricks of a batch, each once."""

    band: SparseTensor  # stored SDF, |value| < 1; this is also the encoder's input
    beyond: SparseTensor  # the other voxels of those bricks: +1 outside, -1 inside

    def to(self, device: torch.device | str) -> "SDFTarget":
        return SDFTarget(self.band.to(device), self.beyond.to(device))


class Reconstruction(NamedTuple):
    """`matched` holds the decoder's values at the band's voxels, row by row."""

    recon: Tensor
    outside: Tensor
    matched: Float[Tensor, "num_band 1"]


def align(decoded: SparseTensor, coords: Tensor) -> Float[Tensor, "num_wanted channels"]:
    """The decoded features at the given voxels, in their order.

    The decoder yields all 8^3 children of every latent voxel, so it has more voxels than its input.
    Raises ValueError where a wanted voxel was not decoded.
    """
    rows, found = find_rows(coords, decoded.grid)
    if not coords.is_cuda and not found.all():  # on CUDA the check would wait for the device at every step
        missing = coords[~found][0].tolist()
        raise ValueError(f"voxel {missing} was not decoded; the latents belong to another shape")
    return decoded.feats[rows]


def reconstruction_loss(decoded: SparseTensor, target: SDFTarget, *, kind: Recon) -> Reconstruction:
    """Means over voxels of |error|, its square, or both: in the band, and to the sign beyond it (0 where none is)."""
    matched = align(decoded, target.band.coords)
    beyond = align(decoded, target.beyond.coords)
    recon = pointwise_loss(matched - target.band.feats, kind)
    outside = pointwise_loss(beyond - target.beyond.feats, kind) if len(beyond) else recon.new_zeros(())
    return Reconstruction(recon, outside, matched)


def pointwise_loss(error: Tensor, kind: Recon) -> Tensor:
    match kind:
        case "l1":
            return error.abs().mean()
        case "l2":
            return error.square().mean()
        case "l1+l2":
            return error.abs().mean() + error.square().mean()


def sign_error_share(matched: Float[Tensor, "num_band 1"], truth: Float[Tensor, "num_band 1"]) -> Tensor:
    """Share of band voxels that are on the wrong side of the decoded surface."""
    return ((matched < 0) != (truth < 0)).float().mean()
