"""Group normalisation with statistics per shape, SiLU after it, and pooling after both: what the encoder begins with.

On CUDA the three are one (kernels/norm.py): features at the finest level are read, not written again and again.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ..operators import operator
from .conv import sum_dtype
from .tensor import Grid, SparseTensor, mean_of_children, share_of_children

MAX_GROUPS = 32


class GroupNormSiLU(nn.Module):
    """SiLU of the group norm (Wu and He 2018) whose statistics are per shape over its voxels, in float32."""

    eps = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.num_groups = math.gcd(MAX_GROUPS, channels)  # narrow layers have fewer groups, of equal width
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: SparseTensor) -> SparseTensor:
        (activated,) = self._apply_to(x, pooled=False)
        return x.with_feats(activated)

    def forward_pooled(self, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
        """The mean over children (mean_of_children) of the result, and that of `x`."""
        activated, plain = (SparseTensor.on(x.grid.pooling.coarse, feats) for feats in self._apply_to(x, pooled=True))
        return activated, plain

    def _apply_to(self, x: SparseTensor, *, pooled: bool) -> tuple[Tensor, ...]:
        return _NormSiLU.apply(x.feats, self.weight, self.bias, x.grid, self.num_groups, self.eps, pooled)


class _NormSiLU(torch.autograd.Function):
    """The activation or, where it is `pooled`, its mean over children and that of the input.

    Keeps its input as it came, in half precision or not, and moments; autograd would keep float32 copies.
    """

    @staticmethod
    def forward(
        ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, grid: Grid, num_groups: int, eps: float, pooled: bool
    ) -> tuple[Tensor, ...]:
        feats, pooling = feats.contiguous(), grid.pooling if pooled else None
        tables = (pooling.children, pooling.divisor, *pooling.coarse.shape_rows) if pooling else ()
        moments, *results = norm_silu(feats, weight, bias, grid.shape_rows, num_groups, eps, tables)
        ctx.save_for_backward(feats, weight, bias, moments)
        ctx.shape_rows, ctx.pooling, ctx.num_groups = grid.shape_rows, pooling, num_groups
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, bias, moments = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        tables = (ctx.pooling.parent, ctx.pooling.divisor) if ctx.pooling else ()
        given = ctx.shape_rows, ctx.num_groups, grads, tables
        return *norm_silu_gradients(feats, weight, bias, moments, *given), None, None, None, None


@operator(
    "(Tensor feats, Tensor weight, Tensor bias, Tensor[] shape_rows, int num_groups, float eps, Tensor[] tables)"
    " -> Tensor[]",
    cuda=".kernels.norm",
)
def norm_silu(
    feats: Float[Tensor, "num_voxels channels"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    shape_rows: Sequence[Tensor],
    num_groups: int,
    eps: float,
    tables: Sequence[Tensor],
) -> list[Tensor]:
    """Moments, [num_shapes, 2, channels]: mean and inverse standard deviation of the channel's group; the activation.

    With `tables` (children and divisor of a Pooling, and ShapeRows of its result) pooled activation and pooled input.
    """
    with torch.autocast("cpu", enabled=False):
        centred = feats.to(sum_dtype(feats.dtype))
        shape_of, counts = _membership(shape_rows, centred.dtype)
        mean = _group_means(shape_of.T @ centred, counts, num_groups)
        centred = centred - shape_of @ mean
        variance = _group_means(shape_of.T @ centred.square(), counts, num_groups)
        inverse_std = (variance + eps).rsqrt()
        activated = F.silu(centred * (shape_of @ (inverse_std * weight)) + bias).to(feats.dtype)
    results = [mean_of_children(x, *tables[:2]) for x in (activated, feats)] if tables else [activated]
    return [torch.stack([mean, inverse_std], 1), *results]


@operator(
    "(Tensor feats, Tensor weight, Tensor bias, Tensor moments, Tensor[] shape_rows, int num_groups, Tensor[] grads,"
    " Tensor[] tables) -> Tensor[]",
    cuda=".kernels.norm",
)
def norm_silu_gradients(
    feats: Float[Tensor, "num_voxels channels"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    moments: Float[Tensor, "num_shapes 2 channels"],
    shape_rows: Sequence[Tensor],
    num_groups: int,
    grads: Sequence[Tensor],
    tables: Sequence[Tensor],
) -> list[Tensor]:
    """Of feats, weight and bias, from those of the results. `tables` are parent and divisor, where it was pooled."""
    grad_activated, *direct = (share_of_children(grad, *tables) for grad in grads) if tables else grads
    mean, inverse_std = moments.unbind(1)
    shape_of, counts = _membership(shape_rows, mean.dtype)
    normed = (feats.to(mean.dtype) - shape_of @ mean) * (shape_of @ inverse_std)
    scaled = normed * weight + bias
    sigmoid = scaled.sigmoid()
    grad = grad_activated.to(mean.dtype) * sigmoid * (1 + scaled * (1 - sigmoid))
    sums, products = shape_of.T @ grad, shape_of.T @ (grad * normed)  # by shape and channel
    # what a change of x does to mean and variance of its group
    by_mean = _group_means(sums * weight, counts, num_groups) * inverse_std
    by_variance = _group_means(products * weight, counts, num_groups) * inverse_std
    grad_feats = grad * (shape_of @ (inverse_std * weight)) - shape_of @ by_mean - normed * (shape_of @ by_variance)
    grad_feats = grad_feats.to(feats.dtype)
    return [grad_feats + direct[0] if direct else grad_feats, products.sum(0), sums.sum(0)]


def _membership(
    shape_rows: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Float[Tensor, "num_voxels num_shapes"], Int[Tensor, "num_shapes 1"]]:
    """One-hot, the shape of each voxel: sums over shapes are products with it. And how many voxels each shape has."""
    order, offsets = shape_rows
    counts = offsets.diff()
    one_hot = torch.zeros(len(order), len(counts), dtype=dtype)
    one_hot[order, torch.repeat_interleave(counts)] = 1
    return one_hot, counts[:, None]


def _group_means(
    sums: Float[Tensor, "num_shapes channels"], counts: Int[Tensor, "num_shapes 1"], num_groups: int
) -> Float[Tensor, "num_shapes channels"]:
    """From sums over each shape's voxels to means over each group's channels too, repeated for its every channel."""
    means = (sums / counts.clamp(min=1)).view(len(sums), num_groups, -1).mean(2)
    return means.repeat_interleave(sums.shape[1] // num_groups, 1)
