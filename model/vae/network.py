"""The sparse-SDF VAE of Direct3D-S2 (Wu et al. 2025), widths configurable; parameter names are the published ones."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..bricks import BRICK_SIZE
from ..distributed import global_mean
from ..errors import InputError
from ..sparse import NUM_CHILDREN, Grid, SparseTensor, neighbour_table
from .decoder import HALO, Decoder
from .encoder import Encoder
from .layers import WINDOW_SHIFTS, WINDOW_SIZE, Recomputable
from .receptive_field import DecodePlan, plan_decode

NUM_LEVELS = BRICK_SIZE.bit_length() - 1  # each halves the resolution; a latent voxel is a brick
MAX_LATENTS_AT_ONCE = 16384  # a surface at resolution 512
_BYTES_A_LATENT, _BYTES_A_CHANNEL = 60_000, 300  # of decode_in_parts


@dataclass(frozen=True)
class VAEConfig:
    """`model_channels` is the width at the latent resolution; the finest level has a sixteenth of it."""

    model_channels: int
    num_blocks: int
    latent_channels: int

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Finest to coarsest."""
        c = self.model_channels
        return c // 16, c // 8, c // 4, c


class Posterior(NamedTuple):
    """A diagonal Gaussian per latent voxel."""

    mean: SparseTensor
    logvar: SparseTensor


class SparseSDFVAE(nn.Module):
    """Stored SDF values on band voxels, to latents at an eighth of the resolution, and back to 8^3 voxels each."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.level_channels, config.num_blocks, config.latent_channels)
        self.decoder = Decoder(config.level_channels[::-1], config.num_blocks, config.latent_channels)

    def recompute_activations(self) -> None:
        """From now on the backward pass computes again what is inside a block, in place of keeping it in memory.

        Chen et al. 2016. Gradients stay as they are.
        """
        for module in self.modules():
            if isinstance(module, Recomputable):
                module.recompute = True

    def encode(self, x: SparseTensor) -> Posterior:
        """`x` has one channel, the stored SDF value. Latent coordinates are those of `x`, div 8, each once."""
        moments = self.encoder(x)
        mean, logvar = moments.feats.float().chunk(2, 1)
        return Posterior(moments.with_feats(mean), moments.with_feats(logvar))

    def decode(self, z: SparseTensor, plan: DecodePlan | None = None) -> SparseTensor:
        """Stored SDF values in [-1, 1] on all 8^3 children of every latent voxel, or on those that the plan is for."""
        return self.decoder(z, plan)

    @torch.no_grad()
    def decode_in_parts(self, z: SparseTensor, *, max_latents: int = MAX_LATENTS_AT_ONCE) -> SparseTensor:
        """As decode of all children, in memory for `max_latents` latent voxels of them at a time, and without gradient.

        Each part is subdivided together with the latent voxels around it that it depends on. Least is computed twice
        where neighbours in space are neighbours in the order of the rows.
        """
        if len(z.grid) <= max_latents:
            return self.decode(z)
        hidden = self.decoder.transform(z)
        children = z.grid.subdivided(NUM_LEVELS)
        parts = []
        for part in children.coords.split(max_latents * NUM_CHILDREN**NUM_LEVELS):
            low, high = part.amin(0), part.amax(0)
            low[1:], high[1:] = low[1:] // BRICK_SIZE - HALO, high[1:] // BRICK_SIZE + HALO
            around = ((z.coords >= low) & (z.coords <= high)).all(1)
            grid = Grid(z.coords[around], num_shapes=z.grid.num_shapes, extent=z.grid.extent)
            plan = plan_decode(grid, part, num_levels=NUM_LEVELS)
            parts.append(self.decoder.subdivide(SparseTensor.on(grid, hidden.feats[around]), plan).feats)
        return SparseTensor.on(children, torch.cat(parts))


def memory_to_decode(coords: Int[np.ndarray, "num_latents 3"], config: VAEConfig) -> int:
    """About how many bytes decode_in_parts takes on a CPU, above what it found: measured, rounded up.

    Windows of attention are padded to the fullest, so that a few scattered latent voxels may take much.
    """
    slots = 0
    for shift in WINDOW_SHIFTS:
        _, counts = np.unique((coords + shift) // WINDOW_SIZE, axis=0, return_counts=True)
        slots = max(slots, len(counts) * int(counts.max()))
    return _BYTES_A_LATENT * len(coords) + _BYTES_A_CHANNEL * config.model_channels * slots


def make_ahead(grid: Grid, plan: DecodePlan) -> None:
    """Make now what encoding voxels on `grid` and decoding by `plan` find out about coordinates.

    Some of it waits for the GPU, so that a network that has to make it does not run ahead.
    """
    for times in range(NUM_LEVELS):
        pooled = grid.pooled(times)
        pooled.shape_rows  # noqa: B018  # kept by the grid
        neighbour_table(pooled.pooling.coarse)
    latents = grid.pooled(NUM_LEVELS)
    latents.shape_rows  # noqa: B018
    for shift in WINDOW_SHIFTS:
        latents.windows(WINDOW_SIZE, shift)
    for step in plan.subdivisions[:-1]:
        neighbour_table(step.fine)


def sample(posterior: Posterior, generator: torch.Generator | None = None) -> SparseTensor:
    """One draw by the reparameterisation trick (Kingma and Welling 2014); gradients reach mean and logvar."""
    mean, logvar = posterior.mean.feats, posterior.logvar.feats
    noise = torch.randn(mean.shape, generator=generator, device=mean.device)
    return posterior.mean.with_feats(mean + (0.5 * logvar).exp() * noise)


def kl_divergence(posterior: Posterior) -> Tensor:
    """KL from the standard normal, in nats: summed over channels, averaged over the latent voxels of all ranks."""
    mean, logvar = posterior.mean.feats, posterior.logvar.feats
    return global_mean(0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1))


def refuse_zero_latents(latents: Float[Tensor, "num_latents dim"]) -> None:
    """Raise InputError for latents of an encoder whose weights were never loaded.

    The published encoder starts with a last layer of zeros: every latent is then 0 and every voxel gets one code.
    """
    if not torch.any(latents):
        raise InputError(
            "every latent is exactly 0, as from an encoder whose zero-initialised last layer was never trained; "
            "point import_vae.checkpoint at trained VAE weights"
        )
