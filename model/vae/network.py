"""The sparse-SDF VAE of Direct3D-S2 (Wu et al. 2025), widths configurable; parameter names are the published ones."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..distributed import global_mean
from ..errors import InputError
from ..sparse import (
    NUM_CHILDREN,
    ChildConv3d,
    Grid,
    GroupNormSiLU,
    SparseTensor,
    Subdivision,
    SubMConv3d,
    neighbour_table,
)
from .layers import WINDOW_SIZE, Linear, Recomputable, TransformerBlock, layer_norm, position_embedding, silu
from .receptive_field import DecodePlan, plan_decode

NUM_LEVELS = 3
DOWNSAMPLING = 2**NUM_LEVELS  # voxels of the input along one side of a latent voxel
SHIFT_OF_ODD_BLOCKS = 4
HALO = 3  # latent voxels that a decoded one depends on: 1 + 1/2 + 1/2 + 1/4 + 1/4 + 1/8, a ring of each convolution
MAX_LATENTS_AT_ONCE = 16384  # a surface at resolution 512


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
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

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
            low[1:], high[1:] = low[1:] // DOWNSAMPLING - HALO, high[1:] // DOWNSAMPLING + HALO
            around = ((z.coords >= low) & (z.coords <= high)).all(1)
            grid = Grid(z.coords[around], num_shapes=z.grid.num_shapes, extent=z.grid.extent)
            plan = plan_decode(grid, part, num_levels=NUM_LEVELS)
            parts.append(self.decoder.subdivide(SparseTensor.on(grid, hidden.feats[around]), plan).feats)
        return SparseTensor.on(children, torch.cat(parts))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.level_channels
        channels = config.model_channels
        self.input_layer1 = Linear(1, widths[0])
        self.downsample = nn.ModuleList(DownBlock(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.input_layer = Linear(channels, channels)
        self.blocks = _transformer(config)
        self.out_layer = Linear(channels, 2 * config.latent_channels)
        nn.init.zeros_(self.out_layer.weight)  # as published: an untrained encoder gives latents of exactly 0
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.input_layer1(x)
        for block in self.downsample:
            h = block(h)
        h = _transform(self.input_layer(h), self.blocks)
        return self.out_layer(layer_norm(h, eps=1e-5))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        widths = config.level_channels[::-1]
        self.input_layer = Linear(config.latent_channels, config.model_channels)
        self.blocks = _transformer(config)
        self.upsample = nn.ModuleList(SubdivideBlock(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.out_layer = Linear(widths[-1], 1)

    def forward(self, z: SparseTensor, plan: DecodePlan | None = None) -> SparseTensor:
        return self.subdivide(self.transform(z), plan)

    def transform(self, z: SparseTensor) -> SparseTensor:
        """What sees the whole shape."""
        return _transform(self.input_layer(z), self.blocks)

    def subdivide(self, h: SparseTensor, plan: DecodePlan | None) -> SparseTensor:
        """What sees HALO latent voxels around each voxel."""
        steps = plan.subdivisions if plan else (None,) * NUM_LEVELS
        for level, (block, step) in enumerate(zip(self.upsample, steps, strict=True)):
            h = block(silu(h) if level else h, step)
        h = self.out_layer.of_silu(h)
        return h.with_feats(torch.tanh(h.feats.float()))


class DownBlock(Recomputable):
    """Norm and activation, mean over 2^3 cells, two convolutions, and a skip past all of it."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        # The published network's places in its lists, which name the parameters; activations had places as well.
        self.act_layers = nn.ModuleDict({"0": GroupNormSiLU(in_channels)})
        self.out_layers = nn.ModuleDict(
            {
                "0": SubMConv3d(in_channels, out_channels),
                "1": GroupNormSiLU(out_channels),
                "3": SubMConv3d(out_channels, out_channels),
            }
        )
        self.skip_connection = Linear(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: SparseTensor) -> SparseTensor:
        norm = self.act_layers["0"]
        assert isinstance(norm, GroupNormSiLU)
        h, pooled = norm.forward_pooled(x)
        for layer in self.out_layers.values():
            h = layer(h)
        return h.with_feats(h.feats + self.skip_connection(pooled).feats)


class SubdivideBlock(Recomputable):
    """Convolution, activation, eight children for every voxel, convolution; the activation after it is to come."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.act_layers = nn.ModuleDict({"0": SubMConv3d(in_channels, out_channels)})  # as in DownBlock
        self.out_layers = nn.ModuleDict({"0": ChildConv3d(out_channels, out_channels)})

    def forward(self, x: SparseTensor, step: Subdivision | None = None) -> SparseTensor:
        """On all children, or on those that `step` names."""
        step = step or x.grid.subdivision
        h = silu(self.act_layers["0"](x, step.children.shape[1]))
        return self.out_layers["0"](h, step)


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
    for shift in (0, SHIFT_OF_ODD_BLOCKS):
        latents.windows(WINDOW_SIZE, shift)
    for step in plan.subdivisions[:-1]:
        neighbour_table(step.fine)


def _transformer(config: VAEConfig) -> nn.ModuleList:
    return nn.ModuleList(
        TransformerBlock(config.model_channels, shift=SHIFT_OF_ODD_BLOCKS * (index % 2))
        for index in range(config.num_blocks)
    )


def _transform(x: SparseTensor, blocks: nn.ModuleList) -> SparseTensor:
    embedding = position_embedding(x.coords, x.feats.shape[1])
    x = x.with_feats(x.feats + embedding.to(x.feats.dtype))
    for block in blocks:
        x = block(x)
    return x


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
