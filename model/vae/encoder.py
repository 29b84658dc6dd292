"""The encoder: three times half the resolution, then a transformer over the latent voxels."""

from collections.abc import Sequence

from torch import nn

from ..sparse import GroupNormSiLU, SparseTensor, SubMConv3d
from .layers import Linear, Recomputable, Transformer, layer_norm


class Encoder(nn.Module):
    """Down to a latent for every brick that has a voxel: means and log-variances side by side."""

    def __init__(self, widths: Sequence[int], num_blocks: int, latent_channels: int):
        super().__init__()
        channels = widths[-1]
        self.input_layer1 = Linear(1, widths[0])
        self.downsample = nn.ModuleList(DownBlock(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.input_layer = Linear(channels, channels)
        self.blocks = Transformer(channels, num_blocks)
        self.out_layer = Linear(channels, 2 * latent_channels)
        nn.init.zeros_(self.out_layer.weight)  # as published: an untrained encoder gives latents of exactly 0
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, x: SparseTensor) -> SparseTensor:
        h = self.input_layer1(x)
        for block in self.downsample:
            h = block(h)
        h = self.blocks(self.input_layer(h))
        return self.out_layer(layer_norm(h, eps=1e-5))


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
