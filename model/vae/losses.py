"""What is minimised: reconstruction where the decoder's voxels meet the input's, and the sign everywhere else.

Means are over the voxels of the whole batch, also where several processes share it (model/distributed.py).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed import global_mean
from ..sparse import SparseTensor
from .network import NUM_LEVELS, make_ahead
from .receptive_field import DecodePlan, plan_decode, plan_decode_of_places

Recon = Literal["l1", "l2", "l1+l2"]


@dataclass(frozen=True)
class SDFTarget:
    """What the decoder shall put out for a batch.

    The decoder can subdivide every latent voxel into all its 8^3 children, far more than its input has. The recipe
    compares where both meet, in the band; `beyond` are children outside it, of all latent voxels or of some.
    """

    band: SparseTensor  # stored SDF, |value| < 1; this is also the encoder's input
    beyond: SparseTensor  # +1 outside, -1 inside

    @cached_property
    def plan(self) -> DecodePlan:
        """Decodes the voxels of `band`, then those of `beyond`. ValueError where one is no child of a latent voxel."""
        latents = self.band.grid.pooled(NUM_LEVELS)
        band, beyond = self.band.grid.places, self.beyond.grid.places
        if band is not None and beyond is not None and len(band.bricks) == len(latents):
            wanted_at = torch.cat([band.place, beyond.place])
            return plan_decode_of_places(latents, wanted_at, num_levels=NUM_LEVELS)
        wanted = torch.cat([self.band.coords, self.beyond.coords])
        return plan_decode(latents, wanted, num_levels=NUM_LEVELS)

    def make_ahead(self) -> None:
        """Make the plan, and all else that the network finds out about coordinates, before it is asked for."""
        make_ahead(self.band.grid, self.plan)

    def to(self, device: torch.device | str) -> "SDFTarget":
        return SDFTarget(self.band.to(device), self.beyond.to(device))


class ReconstructionLoss(NamedTuple):
    """`matched` holds the decoder's values at the band's voxels, row by row."""

    recon: Tensor
    outside: Tensor
    sign_errors: Tensor  # share of the band's voxels on the wrong side; watched, has no gradient
    matched: Float[Tensor, "num_band 1"]


def reconstruction_loss(decoded: SparseTensor, target: SDFTarget, *, kind: Recon) -> ReconstructionLoss:
    """Means over voxels of |error|, its square, or both: in the band, and to the sign beyond it (0 where none is).

    `decoded` is what target.plan decodes.
    """
    num_band, num_beyond = len(target.band.grid), len(target.beyond.grid)
    if len(decoded.grid) != num_band + num_beyond:
        raise ValueError(
            f"{len(decoded.grid)} voxels were decoded; expected the target's {num_band + num_beyond}; "
            "decode by target.plan"
        )
    matched, beyond = decoded.feats.split([num_band, num_beyond])
    recon = pointwise_loss(matched - target.band.feats, kind)
    outside = pointwise_loss(beyond - target.beyond.feats, kind)
    sign_errors = global_mean(((matched < 0) != (target.band.feats < 0)).float())
    return ReconstructionLoss(recon, outside, sign_errors, matched)


def pointwise_loss(error: Tensor, kind: Recon) -> Tensor:
    match kind:
        case "l1":
            return global_mean(error.abs())
        case "l2":
            return global_mean(error.square())
        case "l1+l2":
            return global_mean(error.abs()) + global_mean(error.square())
