"""Group normalisation with statistics per shape, SiLU after it, and pooling after both: what the encoder begins with.

On CUDA the three are fused (model.norm_cuda): features at the finest level are read, not written again and again.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .conv import sum_dtype
from .tensor import Grid, SparseTensor, pool_mean

MAX_GROUPS = 32


class GroupNormSiLU(nn.Module):
    """SiLU of the group norm (Wu and He 2018) whose statistics are per shape over its voxels, in float32."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        super().__init__()
        self.num_groups = math.gcd(MAX_GROUPS, channels)  # narrow layers have fewer groups, of equal width
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        if x.feats.is_cuda:
            from .kernels.norm import norm_silu

            return x.with_feats(norm_silu(x.feats, self.weight, self.bias, x.grid, self.num_groups, self.eps))
        with torch.autocast(x.feats.device.type, enabled=False):
            return x.with_feats(_NormSiLU.apply(x.feats, self.weight, self.bias, x.grid, self.num_groups, self.eps))

    def forward_pooled(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        """pool_mean of the result, and pool_mean of `x`."""
        if x.feats.is_cuda:
            from .kernels.norm import norm_silu_pool

            pooled = norm_silu_pool(x.feats, self.weight, self.bias, x.grid, self.num_groups, self.eps)
            activated, plain = (SparseTensor.on(x.grid.pooling.coarse, feats) for feats in pooled)
            return activated, plain
        return pool_mean(self(x)), pool_mean(x)


class _NormSiLU(torch.autograd.Function):
    """Keeps its input as it came, in half precision or not, and statistics; autograd would keep float32 copies."""

    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, grid: Grid, num_groups: int, eps: float
    ) -> Tensor:
        centred = feats.to(sum_dtype(feats.dtype))
        shape_of = grid.membership.to(centred.dtype)
        mean = _group_means(shape_of.T @ centred, grid, num_groups)
        centred = centred - shape_of @ mean
        variance = _group_means(shape_of.T @ centred.square(), grid, num_groups)
        inverse_std = (variance + eps).rsqrt()
        ctx.save_for_backward(feats, weight, bias, mean, inverse_std)
        ctx.grid, ctx.num_groups = grid, num_groups
        return F.silu(centred * (shape_of @ (inverse_std * weight)) + bias).to(feats.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, bias, mean, inverse_std = ctx.saved_tensors
        shape_of = ctx.grid.membership.to(mean.dtype)
        normed = (feats.to(mean.dtype) - shape_of @ mean) * (shape_of @ inverse_std)
        scaled = normed * weight + bias
        sigmoid = scaled.sigmoid()
        grad = grad_output.to(mean.dtype) * sigmoid * (1 + scaled * (1 - sigmoid))
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
    means = (sums / grid.voxels_per_shape.clamp(min=1)).view(len(sums), num_groups, -1).mean(2)
    return means.repeat_interleave(sums.shape[1] // num_groups, 1)
