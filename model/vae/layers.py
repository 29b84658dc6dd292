"""Layers that act on sparse tensors: activation, windowed attention, position embedding."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..sparse import SparseTensor, Windows, compute_dtype, sum_dtype

HEAD_CHANNELS = 64
WINDOW_SIZE = 8
WINDOW_SHIFTS = (0, 4)  # of even and odd blocks


class Recomputable(nn.Module):
    """A block that may keep nothing but its input for the backward pass."""

    recompute = False

    def __call__(self, *inputs: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False, preserve_rng_state=False)
        return super().__call__(*inputs)


def silu(x: SparseTensor) -> SparseTensor:
    return x.with_feats(F.silu(x.feats))


class _ActivatedLinear(torch.autograd.Function):
    """A linear layer of SiLU or tanh-form GELU, which keeps what is activated; autograd would keep the result too."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, activation: Literal["silu", "gelu"]) -> Tensor:
        ctx.dtype, ctx.activation = feats.dtype, activation
        feats, weight, bias = (part.to(compute_dtype(feats)) for part in (feats, weight, bias))
        ctx.save_for_backward(feats, weight)
        return F.linear(_activate(feats, activation), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight = ctx.saved_tensors
        dtype = sum_dtype(feats.dtype)
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad_output.T @ _activate(feats, ctx.activation)).to(dtype)
            grad_bias = grad_output.sum(0, dtype=dtype)
        grad_feats = grad_output @ weight
        if ctx.activation == "silu":
            grad_feats = torch.ops.aten.silu_backward(grad_feats, feats)
        else:
            grad_feats = torch.ops.aten.gelu_backward(grad_feats, feats, approximate="tanh")
        return grad_feats.to(ctx.dtype), grad_weight, grad_bias, None


def _activate(feats: Tensor, activation: Literal["silu", "gelu"]) -> Tensor:
    return F.silu(feats) if activation == "silu" else F.gelu(feats, approximate="tanh")


class Linear(nn.Linear):
    """A linear layer, which is also a convolution with a kernel of one voxel."""

    def forward(self, x: SparseTensor) -> SparseTensor:  # type: ignore[override]
        return x.with_feats(super().forward(x.feats))

    def of_silu(self, x: SparseTensor) -> SparseTensor:
        return x.with_feats(_ActivatedLinear.apply(x.feats, self.weight, self.bias, "silu"))


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
        sorted_feats = _Permutation.apply(x.feats, windows.order, windows.position)
        qkv = self.to_qkv(sorted_feats).view(len(x.grid), 3, -1, HEAD_CHANNELS)
        half_on_cuda = qkv.is_cuda and qkv.dtype in (torch.float16, torch.bfloat16)
        attended = _attend_varlen(qkv, windows) if half_on_cuda else _attend_padded(qkv, windows)
        return _Permutation.apply(self.to_out(attended.flatten(1)), windows.position, windows.order)


class _Permutation(torch.autograd.Function):
    """Rows in another order, by a gather both ways: torch's own gradient would sort, or add atomically."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse = inverse
        return rows.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        return grad_output.index_select(0, ctx.inverse), None, None


def _attend_varlen(qkv: Float[Tensor, "num_voxels 3 heads 64"], windows: Windows) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # brings torch's compiler, two seconds that only a GPU needs

    q, k, v = qkv.unbind(1)
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
    def __init__(self, channels: int):
        super().__init__()
        # The published network's places in its list, which name the parameters; the activation had one as well.
        self.mlp = nn.ModuleDict({"0": nn.Linear(channels, 4 * channels), "2": nn.Linear(4 * channels, channels)})

    def forward(self, feats: Float[Tensor, "num_voxels channels"]) -> Float[Tensor, "num_voxels channels"]:
        widen, narrow = self.mlp.values()
        return _ActivatedLinear.apply(widen(feats), narrow.weight, narrow.bias, "gelu")


class Transformer(nn.ModuleList):
    """Position embedding, then blocks whose windows are moved in every other one."""

    def __init__(self, channels: int, num_blocks: int):
        shifts = (WINDOW_SHIFTS[index % 2] for index in range(num_blocks))
        super().__init__(TransformerBlock(channels, shift=shift) for shift in shifts)

    def forward(self, x: SparseTensor) -> SparseTensor:
        embedding = position_embedding(x.coords, x.feats.shape[1])
        x = x.with_feats(x.feats + embedding.to(x.feats.dtype))
        for block in self:
            x = block(x)
        return x


def layer_norm(x: SparseTensor, *, eps: float) -> SparseTensor:
    """Over the channels of each voxel, without parameters; in float32 inside, the result in the input's type."""
    with torch.autocast(x.feats.device.type, enabled=False):
        return x.with_feats(F.layer_norm(x.feats, x.feats.shape[1:], eps=eps))


def position_embedding(coords: Int[Tensor, "num_voxels 4"], channels: int) -> Float[Tensor, "num_voxels channels"]:
    """Per axis sin, then cos, of the integer coordinate at `channels` div 3 div 2 frequencies; zero-padded.

    Axes are concatenated. Vaswani et al. 2017, one axis at a time.
    """
    num_frequencies = channels // 3 // 2
    exponents = torch.arange(num_frequencies, dtype=torch.float32, device=coords.device) / num_frequencies
    angles = coords[:, 1:, None].float() * 10000.0**-exponents
    waves = torch.cat([angles.sin(), angles.cos()], 2).flatten(1)
    return F.pad(waves, (0, channels - waves.shape[1]))
