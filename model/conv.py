"""Submanifold 3^3 convolution: the output lives on the input's voxels.

One module, one autograd function. On CUDA the products with the kernel are spconv's implicit-GEMM kernels; on the CPU,
where spconv's forward races between threads and its backward needs a CUDA stream, they are gathers and matrix products
in torch over spconv's rulebook. The gradient of the input is the same convolution with the kernel mirrored. The
gradient of the kernel is gathered on both: spconv's kernel for it is slow at the few channels of the finest levels.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from spconv.core import ConvAlgo
from spconv.pytorch import ops as spconv_ops
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from model.sparse import Grid, SparseTensor

KERNEL_SIZE = 3
NUM_OFFSETS = KERNEL_SIZE**3
GEOMETRY = {
    "ksize": [KERNEL_SIZE] * 3,
    "stride": [1] * 3,
    "padding": [1] * 3,
    "dilation": [1] * 3,
    "out_padding": [0] * 3,
}
COLUMN_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}  # gathered at a time: 32 MB of float32, 128 MB of float16
ALL_OFFSETS = np.array([0xFFFFFFFF], np.uint32)  # spconv may split a kernel in two; this is the mask of one piece
ROWS_PER_PRODUCT = 4096  # long thin products are summed from pieces, which fill a GPU and lose less to rounding


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
        feats: Tensor = x.feats
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(feats.device.type):
            dtype = torch.get_autocast_dtype(feats.device.type)
            feats, weight = feats.to(dtype), weight.to(dtype)
        num_outputs = len(x.grid) if num_outputs is None else num_outputs
        product = _Convolution.apply(feats, weight, x.grid, num_outputs)
        return SparseTensor.on(x.grid.leading(num_outputs), product + self.bias.to(product.dtype))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, grid: Grid, num_outputs: int) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.grid = grid
        return _convolve(feats, weight, rulebook(grid, len(grid), num_outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        feats, weight = ctx.saved_tensors
        num_inputs, num_outputs = len(feats), len(grad_output)
        grad_feats = grad_weight = None
        if ctx.needs_input_grad[0]:  # what a voxel gave at offset k, it gets back from its neighbour at -k
            mirrored = weight.flip(1, 2, 3).permute(4, 1, 2, 3, 0)
            grad_feats = _convolve(grad_output, mirrored, rulebook(ctx.grid, num_outputs, num_inputs))
        if ctx.needs_input_grad[1]:
            forward_rules = rulebook(ctx.grid, num_inputs, num_outputs)
            grad_weight = _kernel_gradient(feats, grad_output, forward_rules).reshape(weight.shape).to(weight.dtype)
        return grad_feats, grad_weight, None, None


class Rulebook(NamedTuple):
    """What each output row reads: its neighbours' input rows, by kernel offset (x slowest, as in the weight)."""

    neighbours: Int[Tensor, "27 num_outputs"]  # int32; -1 where there is none
    masks: Int[Tensor, "num_outputs 1"] | None = None  # on CUDA: int32, bit k says that offset k has a neighbour
    order: Int[Tensor, " num_outputs"] | None = None  # on CUDA: int32, rows of like masks next to each other


def rulebook(grid: Grid, num_inputs: int, num_outputs: int) -> Rulebook:
    """Of the leading rows of a grid. All of them stem from one search for neighbours, made once per grid."""
    grid = grid.whole
    books = grid.rulebooks
    everything = len(grid), len(grid)
    if everything not in books:
        books[everything] = _search_on_cuda(grid) if grid.coords.is_cuda else _search_on_cpu(grid)
    if (num_inputs, num_outputs) not in books:
        neighbours = books[everything].neighbours[:, :num_outputs]
        if num_inputs < len(grid):
            neighbours = torch.where(neighbours < num_inputs, neighbours, -1)
        books[num_inputs, num_outputs] = _with_masks(neighbours.contiguous())
    return books[num_inputs, num_outputs]


def _search_on_cpu(grid: Grid) -> Rulebook:
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
    return Rulebook(table)


def _search_on_cuda(grid: Grid) -> Rulebook:
    result = spconv_ops.get_indice_pairs_implicit_gemm(
        grid.coords,
        grid.num_shapes,
        [grid.extent] * 3,
        ConvAlgo.MaskImplicitGemm,
        **GEOMETRY,
        subm=True,
        is_train=False,
    )
    return Rulebook(result[2], result[4][0], result[6][0])


def _with_masks(neighbours: Int[Tensor, "27 num_outputs"]) -> Rulebook:
    if not neighbours.is_cuda:
        return Rulebook(neighbours)
    bits = torch.arange(NUM_OFFSETS, dtype=torch.int32, device=neighbours.device)
    masks = ((neighbours >= 0).int() << bits[:, None]).sum(0, dtype=torch.int32)
    return Rulebook(neighbours, masks[:, None], masks.argsort().int())


def _convolve(
    feats: Float[Tensor, "num_inputs in_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    rules: Rulebook,
) -> Float[Tensor, "num_outputs out_channels"]:
    num_outputs = rules.neighbours.shape[1]
    if feats.is_cuda:
        return spconv_ops.implicit_gemm(
            feats.contiguous(),
            weight.contiguous(),
            rules.neighbours,
            [rules.masks],
            [rules.order],
            num_outputs,
            [ALL_OFFSETS],
            is_train=False,
            is_subm=True,
            fp32_accum=True,
        )[0]
    kernel = weight.flatten(1).T
    output = feats.new_empty(num_outputs, len(weight))
    for rows, columns in _columns(feats, rules):
        torch.mm(columns, kernel, out=output[rows])
    return output


def _kernel_gradient(
    feats: Float[Tensor, "num_inputs in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    rules: Rulebook,
) -> Float[Tensor, "out_channels 27*in_channels"]:
    """Sum over voxels of output gradient times gathered neighbourhood, in float32 or more."""
    dtype = torch.promote_types(feats.dtype, torch.float32)
    total = torch.zeros(grad_output.shape[1], NUM_OFFSETS * feats.shape[1], dtype=dtype, device=feats.device)
    for rows, columns in _columns(feats, rules):
        grads = grad_output[rows].T
        whole = len(columns) // ROWS_PER_PRODUCT * ROWS_PER_PRODUCT
        pieces = torch.bmm(
            grads[:, :whole].unflatten(1, (-1, ROWS_PER_PRODUCT)).transpose(0, 1),
            columns[:whole].unflatten(0, (-1, ROWS_PER_PRODUCT)),
        )
        total += pieces.sum(0, dtype=dtype)
        total += grads[:, whole:] @ columns[whole:]
    return total


def _columns(
    feats: Float[Tensor, "num_inputs channels"], rules: Rulebook
) -> Iterator[tuple[slice, Float[Tensor, "num_rows 27*channels"]]]:
    """Blocks of output rows, the features of each one's 27 neighbours side by side; absent neighbours are zeros."""
    num_inputs, channels = feats.shape
    num_outputs = rules.neighbours.shape[1]
    padded = torch.nn.functional.pad(feats, (0, 0, 0, 1))
    block = max(ROWS_PER_PRODUCT, COLUMN_ELEMENTS[feats.device.type] // (NUM_OFFSETS * channels))
    for start in range(0, num_outputs, block):
        rows = slice(start, min(start + block, num_outputs))
        present = rules.neighbours[:, rows].T
        index = torch.where(present < 0, num_inputs, present).flatten()
        yield rows, padded.index_select(0, index).view(-1, NUM_OFFSETS * channels)


def neighbour_table(grid: Grid) -> Int[Tensor, "27 num_voxels"]:
    """Row of the voxel at each kernel offset (x slowest, as in the weight), or -1 where there is none."""
    return rulebook(grid, len(grid), len(grid)).neighbours
