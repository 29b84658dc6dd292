"""The decoder: a transformer over the latent voxels, then three times twice the resolution."""

from collections.abc import Sequence

import torch
from torch import nn

from ..sparse import ChildConv3d, SparseTensor, Subdivision, SubMConv3d
from .layers import Linear, Recomputable, Transformer, silu
from .receptive_field import DecodePlan

HALO = 3  # latent voxels that a decoded one depends on: 1 + 1/2 + 1/2 + 1/4 + 1/4 + 1/8, a ring of each convolution


class Decoder(nn.Module):
    """Up to a value of every child of every latent, or of those that a plan is for."""

    def __init__(self, widths: Sequence[int], num_blocks: int, latent_channels: int):
        super().__init__()
        self.input_layer = Linear(latent_channels, widths[0])
        self.blocks = Transformer(widths[0], num_blocks)
        self.upsample = nn.ModuleList(SubdivideBlock(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.out_layer = Linear(widths[-1], 1)

    def forward(self, z: SparseTensor, plan: DecodePlan | None = None) -> SparseTensor:
        return self.subdivide(self.transform(z), plan)

    def transform(self, z: SparseTensor) -> SparseTensor:
        """What sees the whole shape."""
        return self.blocks(self.input_layer(z))

    def subdivide(self, h: SparseTensor, plan: DecodePlan | None) -> SparseTensor:
        """What sees HALO latent voxels around each voxel."""
        steps = plan.subdivisions if plan else (None,) * len(self.upsample)
        for level, (block, step) in enumerate(zip(self.upsample, steps, strict=True)):
            h = block(silu(h) if level else h, step)
        h = self.out_layer.of_silu(h)
        return h.with_feats(torch.tanh(h.feats.float()))


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
