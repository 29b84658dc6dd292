"""Submanifold 3^3 convolution: the output lives on the input's voxels.

Products are operators. On CUDA each is a fused kernel of our own (kernels/conv.py); on the CPU, where spconv's forward
races between threads and its backward needs a CUDA stream, it is a gather and a matrix product in torch. The gradient
of the input is the same convolution with the kernel mirrored.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..operators import operator
from .neighbours import KERNEL_SIZE, NUM_OFFSETS, pad_absent
from .tensor import SparseTensor, neighbour_table

COLUMN_ELEMENTS = 2**23  # gathered at a time: 32 MB of float32
ROWS_PER_PRODUCT = 4096  # of a sum of products over rows


class SubMConv3d(nn.Module):
    """`weight` is [out, kx, ky, kz, in], spconv's layout; `bias` is [out]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        shape = (out_channels, KERNEL_SIZE, KERNEL_SIZE, KERNEL_SIZE, in_channels)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        if not self.weight.is_meta:  # there, drawing nothing would import torch's compiler, which takes a second
            nn.init.normal_(self.weight, std=1 / math.sqrt(NUM_OFFSETS * in_channels))

    def forward(self, x: SparseTensor, num_outputs: int | None = None) -> SparseTensor:
        """With `num_outputs`, only that many leading rows are computed; their neighbours are found in all rows."""
        num_outputs = len(x.grid) if num_outputs is None else num_outputs
        neighbours = neighbour_table(x.grid.whole)
        feats = Convolution.apply(_PRODUCTS, x.feats, self.weight, self.bias, num_outputs, neighbours)
        return SparseTensor.on(x.grid.leading(num_outputs), feats)


class Products(NamedTuple):
    """The three products of a convolution. Last arguments of each are the tables that say which rows meet."""

    convolve: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    kernel_gradient: Callable[..., Tensor]


class Convolution(torch.autograd.Function):
    """Rows of the inputs and of the outputs are leading rows of the neighbour table; others count as absent.

    Products are in half precision within autocast, and added up in float32 or more.
    """

    @staticmethod
    def forward(
        ctx: Any, products: Products, feats: Tensor, weight: Tensor, bias: Tensor, num_outputs: int, *tables: Tensor
    ) -> Tensor:
        ctx.products, ctx.dtype = products, feats.dtype
        feats, weight = feats.to(compute_dtype(feats)), weight.to(compute_dtype(feats))
        ctx.save_for_backward(feats, weight, *tables)
        return products.convolve(feats, weight, bias, num_outputs, *tables)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, *tables = ctx.saved_tensors
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_feats = ctx.products.input_gradient(grad_output, weight, len(feats), *tables).to(ctx.dtype)
        if ctx.needs_input_grad[2]:
            grad_weight = ctx.products.kernel_gradient(feats, grad_output, *tables).view(weight.shape)
            grad_bias = grad_output.sum(0, dtype=sum_dtype(grad_output.dtype))
        return None, grad_feats, grad_weight, grad_bias, None, *(None for _ in tables)


def compute_dtype(feats: Tensor) -> torch.dtype:
    """That of a convolution's products: half precision within autocast."""
    device = feats.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else feats.dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 or more."""
    return torch.promote_types(dtype, torch.float32)


@operator(
    "(Tensor feats, Tensor weight, Tensor bias, int num_outputs, Tensor neighbours) -> Tensor", cuda=".kernels.conv"
)
def convolve(
    feats: Float[Tensor, "num_inputs in_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    bias: Float[Tensor, " out_channels"],
    num_outputs: int,
    neighbours: Int[Tensor, "27 num_rows"],
) -> Float[Tensor, "num_outputs out_channels"]:
    """The first rows of the convolution; neighbours that are no row of feats count as absent."""
    kernel = weight.flatten(1).T
    output = feats.new_empty(num_outputs, len(weight))
    for rows, columns in _columns(feats, neighbours, num_outputs):
        torch.addmm(bias.to(feats.dtype), columns, kernel, out=output[rows])
    return output


@operator("(Tensor grad_output, Tensor weight, int num_inputs, Tensor neighbours) -> Tensor", cuda=".kernels.conv")
def convolve_input_gradient(
    grad_output: Float[Tensor, "num_outputs out_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    num_inputs: int,
    neighbours: Int[Tensor, "27 num_rows"],
) -> Float[Tensor, "num_inputs in_channels"]:
    """What a voxel gave at offset k, it gets back from its neighbour at -k."""
    mirrored = weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0)
    return convolve(grad_output, mirrored, weight.new_zeros(weight.shape[-1]), num_inputs, neighbours)


@operator("(Tensor feats, Tensor grad_output, Tensor neighbours) -> Tensor", cuda=".kernels.conv")
def convolve_kernel_gradient(
    feats: Float[Tensor, "num_inputs in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
) -> Float[Tensor, "out_channels 27 in_channels"]:
    """Sum over voxels of output gradient times gathered neighbourhood, added up in float32 or more."""
    dtype = sum_dtype(feats.dtype)
    total = torch.zeros(grad_output.shape[1], NUM_OFFSETS * feats.shape[1], dtype=dtype)
    for rows, columns in _columns(feats, neighbours, len(grad_output)):
        total += sum_of_products(grad_output[rows], columns)
    return total.view(len(total), NUM_OFFSETS, -1)


_PRODUCTS = Products(convolve, convolve_input_gradient, convolve_kernel_gradient)


def sum_of_products(
    grads: Float[Tensor, "num_rows out_channels"], columns: Float[Tensor, "num_rows width"]
) -> Float[Tensor, "out_channels width"]:
    """Over rows, from pieces in the type of the input, added up in float32 or more: long thin sums lose to rounding."""
    whole = len(columns) // ROWS_PER_PRODUCT * ROWS_PER_PRODUCT
    pieces = torch.bmm(
        grads[:whole].unflatten(0, (-1, ROWS_PER_PRODUCT)).transpose(1, 2),
        columns[:whole].unflatten(0, (-1, ROWS_PER_PRODUCT)),
    )
    return pieces.sum(0, dtype=sum_dtype(columns.dtype)) + grads[whole:].T @ columns[whole:]


def _columns(
    feats: Float[Tensor, "num_inputs channels"], neighbours: Int[Tensor, "27 num_rows"], num_outputs: int
) -> Iterator[tuple[slice, Float[Tensor, "num_rows 27*channels"]]]:
    """Blocks of output rows, the features of each one's 27 neighbours side by side; absent neighbours are zeros."""
    padded, channels = pad_absent(feats, neighbours), feats.shape[1]
    block = max(ROWS_PER_PRODUCT, COLUMN_ELEMENTS // (NUM_OFFSETS * channels))
    for start in range(0, num_outputs, block):
        rows = slice(start, min(start + block, num_outputs))
        index = neighbours[:, rows].T.flatten() + 1
        yield rows, padded.index_select(0, index).view(-1, NUM_OFFSETS * channels)
