"""Layers that act on sparse tensors: per-shape group norm, activation, windowed attention, position embedding."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

from model.sparse import Grid, SparseTensor, Windows

HEAD_CHANNELS = 64
WINDOW_SIZE = 8
MAX_GROUPS = 32


class Recomputable(nn.Module):
    """A block that may keep nothing but its input for the backward pass."""

    recompute = False

    def __call__(self, *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*inputs)


class GroupNorm(nn.Module):
    """Group normalisation with statistics per shape over its voxels, in float32 (Wu and He 2018)."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.num_groups = math.gcd(MAX_GROUPS, channels)  # narrow layers have fewer groups, of equal width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        with torch.autocast(x.feats.device.type, enabled=False):
            return x.with_feats(_GroupNorm.apply(x.feats, self.weight, self.bias, x.grid, self.num_groups, self.eps))


class _GroupNorm(torch.autograd.Function):
    """Keeps its input as it came, in half precision or not, and statistics; autograd would keep float32 copies."""

    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, grid: Grid, num_groups: int, eps: float
    ) -> Tensor:
        centred = feats.float()
        mean = _group_means(grid.membership.T @ centred, grid, num_groups)
        centred = centred - grid.membership @ mean
        variance = _group_means(grid.membership.T @ centred.square(), grid, num_groups)
        inverse_std = (variance + eps).rsqrt()
        ctx.save_for_backward(feats, weight, mean, inverse_std)
        ctx.grid, ctx.num_groups = grid, num_groups
        return (centred * (grid.membership @ (inverse_std * weight)) + bias).to(feats.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, mean, inverse_std = ctx.saved_tensors
        shape_of = ctx.grid.membership
        grad = grad_output.float()
        normed = (feats.float() - shape_of @ mean) * (shape_of @ inverse_std)
        sums, products = shape_of.T @ grad, shape_of.T @ (grad * normed)  # by shape and channel
        # what a change of x does to mean and variance of its group
        by_mean = _group_means(sums * weight, ctx.grid, ctx.num_groups) * inverse_std
        by_variance = _group_means(products * weight, ctx.grid, ctx.num_groups) * inverse_std
        grad_feats = grad * (shape_of @ (inverse_std * weight)) - shape_of @ by_mean - normed * (shape_of @ by_variance)
        return grad_feats.to(feats.dtype), products.sum(0), sums.sum(0), None, None, None


def _group_means(
    sums: Float[Tensor, "num_shapes channels"], grid: Grid, num_groups: int
) -> Float[Tensor, "num_shapes channels"]:
    """From sums over each shape's voxels to means over each group's channels too, repeated for its every channel."""
    means = (sums / grid.voxels_per_shape).view(len(sums), num_groups, -1).mean(2)
    return means.repeat_interleave(sums.shape[1] // num_groups, 1)


class SiLU(nn.Module):
    def forward(self, x: SparseTensor) -> SparseTensor:
        return x.with_feats(F.silu(x.feats))


class Linear(nn.Linear):
    """A linear layer, which is also a convolution with a kernel of one voxel."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return x.with_feats(super().forward(x.feats))


class WindowAttention(nn.Module):
    """Multi-head self-attention among the voxels of each 8^3 window of the grid, the windows moved by `shift`."""

    def __init__(self, channels: int, *, shift: int):
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise ValueError(f"{channels} channels do not divide into heads of {HEAD_CHANNELS}")
        self.shift = shift
        self.to_qkv = nn.Linear(channels, 3 * channels)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: SparseTensor) -> Float[Tensor, "num_voxels channels"]:
        windows = x.grid.windows(WINDOW_SIZE, self.shift)
        qkv = self.to_qkv(x.feats).view(len(x.grid), 3, -1, HEAD_CHANNELS)[windows.order]
        half_on_cuda = qkv.is_cuda and qkv.dtype in (torch.float16, torch.bfloat16)
        attended = _attend_varlen(qkv, windows) if half_on_cuda else _attend_padded(qkv, windows)
        unsorted = torch.empty_like(attended).index_copy(0, windows.order, attended)
        return self.to_out(unsorted.flatten(1))


def _attend_varlen(qkv: Float[Tensor, "num_voxels 3 heads 64"], windows: Windows) -> Tensor:
    q, k, v = (part.contiguous() for part in qkv.unbind(1))
    attended = varlen_attn(q, k, v, windows.offsets, windows.offsets, windows.longest, windows.longest)
    assert isinstance(attended, Tensor)  # a tuple only where it was asked for more
    return attended


def _attend_padded(qkv: Float[Tensor, "num_voxels 3 heads 64"], windows: Windows) -> Tensor:
    """The same for float32 and for the CPU, where the varlen kernel does not exist."""
    lengths = windows.offsets.diff()
    num_windows = len(lengths)
    window = torch.repeat_interleave(lengths, output_size=len(qkv))
    position = torch.arange(len(qkv), device=qkv.device) - windows.offsets[window]
    slot = window * windows.longest + position
    padded = qkv.new_zeros(num_windows * windows.longest, *qkv.shape[1:]).index_copy(0, slot, qkv)
    q, k, v = padded.view(num_windows, windows.longest, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)
    present = torch.arange(windows.longest, device=qkv.device) < lengths[:, None]
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=present[:, None, None])
    return attended.transpose(1, 2).reshape(-1, *qkv.shape[2:])[slot]


class TransformerBlock(Recomputable):
    """Pre-norm attention and MLP, each added to its input; norms have no parameters."""

    def __init__(self, channels: int, *, shift: int):
        super().__init__()
        self.attn = WindowAttention(channels, shift=shift)
        self.mlp = FeedForward(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        x = x.with_feats(x.feats + self.attn(layer_norm(x, eps=1e-6)))
        return x.with_feats(x.feats + self.mlp(layer_norm(x, eps=1e-6).feats))


class FeedForward(nn.Module):
    def __init__(self, channels: int, *, ratio: int = 4):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(channels, ratio * channels), nn.GELU(approximate="tanh"), nn.Linear(ratio * channels, channels)
        )

    def forward(self, feats: Float[Tensor, "num_voxels channels"]) -> Float[Tensor, "num_voxels channels"]:
        return self.mlp(feats)


def layer_norm(x: SparseTensor, *, eps: float) -> SparseTensor:
    """Over the channels of each voxel, without parameters, in float32."""
    return x.with_feats(F.layer_norm(x.feats.float(), x.feats.shape[1:], eps=eps).to(x.feats.dtype))


def position_embedding(coords: Int[Tensor, "num_voxels 4"], channels: int) -> Float[Tensor, "num_voxels channels"]:
    """Per axis sin, then cos, of the integer coordinate at `channels` div 3 div 2 frequencies; zero-padded.

    Axes are concatenated. Vaswani et al. 2017, one axis at a time.
    """
    num_frequencies = channels // 3 // 2
    exponents = torch.arange(num_frequencies, dtype=torch.float32, device=coords.device) / num_frequencies
    angles = coords[:, 1:, None].float() * 10000.0**-exponents
    waves = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))
