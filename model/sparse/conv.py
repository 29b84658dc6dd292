"""Submanifold 3^3 convolution: the output lives on the input's voxels.

One module, one autograd function over spconv's neighbour search. On CUDA each product is a fused kernel of our own
(model.conv_cuda); on the CPU, where spconv's forward races between threads and its backward needs a CUDA stream, it is
a gather and a matrix product in torch. The gradient of the input is the same convolution with the kernel mirrored.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from spconv.core import ConvAlgo
from spconv.pytorch import ops as spconv_ops
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..errors import InputError
from .tensor import Grid, SparseTensor

KERNEL_SIZE = 3
NUM_OFFSETS = KERNEL_SIZE**3
GEOMETRY = {
    "ksize": [KERNEL_SIZE] * 3,
    "stride": [1] * 3,
    "padding": [1] * 3,
    "dilation": [1] * 3,
    "out_padding": [0] * 3,
}
MAX_PLACES_ON_CPU = 2**32  # spconv's hash table there has keys of 32 bits
COLUMN_ELEMENTS = 2**23  # gathered at a time: 32 MB of float32
ROWS_PER_PRODUCT = 4096  # of a sum of products over rows


class SubMConv3d(nn.Module):
    """`weight` is [out, kx, ky, kz, in], spconv's layout; `bias` is [out]."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        shape = (out_channels, KERNEL_SIZE, KERNEL_SIZE, KERNEL_SIZE, in_channels)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.normal_(self.weight, std=1 / math.sqrt(NUM_OFFSETS * in_channels))

    def forward(self, x: SparseTensor, num_outputs: int | None = None) -> SparseTensor:
        """With `num_outputs`, only that many leading rows are computed; their neighbours are found in all rows."""
        num_outputs = len(x.grid) if num_outputs is None else num_outputs
        feats = _Convolution.apply(x.feats, self.weight, self.bias, neighbour_table(x.grid.whole), num_outputs)
        return SparseTensor.on(x.grid.leading(num_outputs), feats)


class _Convolution(torch.autograd.Function):
    """Rows of the inputs and of the outputs are leading rows of the neighbour table; others count as absent."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor, neighbours: Tensor, num_outputs: int) -> Tensor:
        ctx.dtype = feats.dtype
        feats, weight = feats.to(compute_dtype(feats)), weight.to(compute_dtype(feats))
        ctx.save_for_backward(feats, weight, neighbours)
        if feats.is_cuda:
            from .kernels.conv import convolve

            return convolve(feats, weight, bias, neighbours, num_outputs)
        return _convolve(feats, weight, bias, neighbours, num_outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, neighbours = ctx.saved_tensors
        if feats.is_cuda:
            from .kernels.conv import input_gradient, kernel_gradient
        else:
            input_gradient, kernel_gradient = _input_gradient, _kernel_gradient
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_feats = input_gradient(grad_output, weight, neighbours, len(feats)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = kernel_gradient(feats, grad_output, neighbours).reshape(weight.shape)
            grad_bias = sum_rows(grad_output)
        return grad_feats, grad_weight, grad_bias, None, None


def compute_dtype(feats: Tensor) -> torch.dtype:
    """That of a convolution's products: half precision within autocast."""
    device = feats.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else feats.dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 or more."""
    return torch.promote_types(dtype, torch.float32)


def sum_rows(rows: Float[Tensor, "num_rows channels"]) -> Float[Tensor, " channels"]:
    return rows.sum(0, dtype=sum_dtype(rows.dtype))


def _convolve(
    feats: Float[Tensor, "num_inputs in_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    bias: Float[Tensor, " out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    num_outputs: int,
) -> Float[Tensor, "num_outputs out_channels"]:
    kernel = weight.flatten(1).T
    output = feats.new_empty(num_outputs, len(weight))
    for rows, columns in _columns(feats, neighbours, num_outputs):
        torch.addmm(bias.to(feats.dtype), columns, kernel, out=output[rows])
    return output


def _input_gradient(
    grad_output: Float[Tensor, "num_outputs out_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    num_inputs: int,
) -> Float[Tensor, "num_inputs in_channels"]:
    """What a voxel gave at offset k, it gets back from its neighbour at -k."""
    mirrored = weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0)
    return _convolve(grad_output, mirrored, weight.new_zeros(weight.shape[-1]), neighbours, num_inputs)


def _kernel_gradient(
    feats: Float[Tensor, "num_inputs in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
) -> Float[Tensor, "out_channels 27*in_channels"]:
    """Sum over voxels of output gradient times gathered neighbourhood, added up in float32 or more."""
    dtype = sum_dtype(feats.dtype)
    total = torch.zeros(grad_output.shape[1], NUM_OFFSETS * feats.shape[1], dtype=dtype)
    for rows, columns in _columns(feats, neighbours, len(grad_output)):
        total += sum_of_products(grad_output[rows], columns)
    return total


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
    num_inputs, channels = feats.shape
    padded = torch.nn.functional.pad(feats, (0, 0, 0, 1))
    block = max(ROWS_PER_PRODUCT, COLUMN_ELEMENTS // (NUM_OFFSETS * channels))
    for start in range(0, num_outputs, block):
        rows = slice(start, min(start + block, num_outputs))
        index = neighbours[:, rows].T
        index = torch.where(index < 0, num_inputs, index).clamp_(max=num_inputs).flatten()
        yield rows, padded.index_select(0, index).view(-1, NUM_OFFSETS * channels)


def neighbour_table(grid: Grid) -> Int[Tensor, "27 num_voxels"]:
    """Row of the voxel at each kernel offset (x slowest, as in the weight), or -1 where there is none; int32."""
    if grid.neighbours is None:
        grid.neighbours = _search_on_cuda(grid) if grid.coords.is_cuda else _search_on_cpu(grid)
    return grid.neighbours


def _search_on_cpu(grid: Grid) -> Int[Tensor, "27 num_voxels"]:
    if grid.num_shapes * grid.extent**3 > MAX_PLACES_ON_CPU:
        raise InputError(
            f"{grid.num_shapes} shapes of {grid.extent}^3 voxels are more than the CPU's neighbour search tells apart; "
            f"give it at most {MAX_PLACES_ON_CPU // grid.extent**3} at a time"
        )
    _, pairs, counts = spconv_ops.get_indice_pairs(
        grid.coords, grid.num_shapes, [grid.extent] * 3, ConvAlgo.Native, **GEOMETRY, subm=True
    )
    table = torch.full((NUM_OFFSETS, len(grid)), -1, dtype=torch.int32)
    centre = NUM_OFFSETS // 2
    table[centre] = torch.arange(len(grid), dtype=torch.int32)
    for offset in range(centre):  # spconv counts only the first half; the second is its mirror image
        inputs, outputs = pairs[:, offset, : int(counts[offset])]
        table[offset, outputs.long()] = inputs
        table[NUM_OFFSETS - 1 - offset, inputs.long()] = outputs
    return table


def _search_on_cuda(grid: Grid) -> Int[Tensor, "27 num_voxels"]:
    return spconv_ops.get_indice_pairs_implicit_gemm(
        grid.coords,
        grid.num_shapes,
        [grid.extent] * 3,
        ConvAlgo.MaskImplicitGemm,
        **GEOMETRY,
        subm=True,
        is_train=False,
        do_sort=False,
    )[2]
