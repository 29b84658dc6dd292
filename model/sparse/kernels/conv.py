"""The two products of a submanifold convolution on CUDA, each one kernel: gather and matrix product fused (Triton).

Sums are taken in float32 whatever the inputs are. spconv's kernels, which these replace, add up float16 products in
float16 on the GPUs at hand, which costs ten times the rounding error; benchmarks/conv_cuda.json has both, with times.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

NUM_OFFSETS = 27
ROWS = 128  # output rows, or rows of a sum, that a program takes at a time
# New with every batch: nothing is compiled for their values.
NUMBERS = ["num_inputs", "num_outputs", "num_rows", "rows_per_split"]
MIN_BLOCK = 16  # the smallest matrix product of a tensor core
# Of float32 inputs: three products of TF32 parts keep 22 bits, on tensor cores.
PRECISION = tl.constexpr("tf32x3")
NUM_PROGRAMS = 4096  # enough to fill a GPU several times over


@triton.jit(do_not_specialize=NUMBERS)
def _convolve_kernel(
    feats,
    weight,
    bias,
    neighbours,
    output,
    num_inputs,
    num_outputs,
    num_rows,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    MIRRORED: tl.constexpr,
):
    """With MIRRORED, the gradient of the input: kernel elements in the opposite order, their channels exchanged."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < num_outputs
    out_channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    out_exists = out_channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    total = tl.zeros((ROWS, BLOCK_OUT), tl.float32)
    if not MIRRORED:
        total += tl.load(bias + out_channel, out_exists, 0.0).to(tl.float32)[None, :]
    for offset in range(27):
        neighbour = tl.load(neighbours + offset * (long + num_rows) + row, mask=inside, other=-1)
        present = (neighbour >= 0) & (neighbour < num_inputs)
        if tl.max(present.to(tl.int32), 0) > 0:
            source = neighbour.to(tl.int64) * C_IN
            for start in range(0, C_IN, BLOCK_IN):
                channel = start + tl.arange(0, BLOCK_IN)
                exists = channel < C_IN
                x = tl.load(feats + source[:, None] + channel[None, :], present[:, None] & exists[None, :], 0.0)
                if MIRRORED:
                    kernel = weight + (channel[:, None] * 27 + 26 - offset) * C_OUT + out_channel[None, :]
                else:
                    kernel = weight + (out_channel[None, :] * 27 + offset) * C_IN + channel[:, None]
                w = tl.load(kernel, out_exists[None, :] & exists[:, None], 0.0)
                total = tl.dot(x, w, total, input_precision=PRECISION)
    target = output + row.to(tl.int64)[:, None] * C_OUT + out_channel[None, :]
    tl.store(target, total.to(output.dtype.element_ty), inside[:, None] & out_exists[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _gradient_kernel(
    feats,
    grad_output,
    neighbours,
    partial,
    num_inputs,
    num_outputs,
    num_rows,
    rows_per_split,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    offset, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles_in: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    in_channel = (tile % tiles_in) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_channel = (tile // tiles_in) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_exists, out_exists = in_channel < C_IN, out_channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    end = tl.minimum((split + 1) * rows_per_split, num_outputs)
    for start in range(split * rows_per_split, end, ROWS):
        row = start + tl.arange(0, ROWS)
        neighbour = tl.load(neighbours + offset * (long + num_rows) + row, mask=row < end, other=-1)
        present = (neighbour >= 0) & (neighbour < num_inputs)
        grad = grad_output + row.to(tl.int64)[None, :] * C_OUT + out_channel[:, None]
        g = tl.load(grad, present[None, :] & out_exists[:, None], 0.0)
        source = feats + neighbour.to(tl.int64)[:, None] * C_IN + in_channel[None, :]
        x = tl.load(source, present[:, None] & in_exists[None, :], 0.0)
        total = tl.dot(g, x, total, input_precision=PRECISION)
    kernel = (split.to(tl.int64) * C_OUT + out_channel[:, None]) * 27 + offset
    tl.store(partial + kernel * C_IN + in_channel[None, :], total, out_exists[:, None] & in_exists[None, :])


def convolve(
    feats: Float[Tensor, "num_inputs in_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    bias: Float[Tensor, " out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    num_outputs: int,
) -> Float[Tensor, "num_outputs out_channels"]:
    """The first rows of the convolution; neighbours that are no row of feats count as absent."""
    return _launch(feats, weight, bias, neighbours, feats.new_empty(num_outputs, weight.shape[0]))


def input_gradient(
    grad_output: Float[Tensor, "num_outputs out_channels"],
    weight: Float[Tensor, "out_channels 3 3 3 in_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    num_inputs: int,
) -> Float[Tensor, "num_inputs in_channels"]:
    return _launch(grad_output, weight, None, neighbours, grad_output.new_empty(num_inputs, weight.shape[-1]))


def _launch(feats: Tensor, weight: Tensor, bias: Tensor | None, neighbours: Tensor, output: Tensor) -> Tensor:
    (num_outputs, c_out), c_in = output.shape, feats.shape[1]
    block_in, block_out = block_of(c_in, 64), block_of(c_out, 128)
    _convolve_kernel[triton.cdiv(num_outputs, ROWS), triton.cdiv(c_out, block_out)](
        feats.contiguous(),
        weight.contiguous(),
        bias,
        neighbours,
        output,
        len(feats),
        num_outputs,
        neighbours.shape[1],
        c_in,
        c_out,
        ROWS,
        block_in,
        block_out,
        bias is None,
        num_warps=8 if block_in * block_out > 64 * 64 else 4,
    )
    return output


def kernel_gradient(
    feats: Float[Tensor, "num_inputs in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
) -> Float[Tensor, "out_channels 27*in_channels"]:
    """Sum over voxels of output gradient times neighbourhood, in float32; the order of summation is fixed."""
    num_outputs, c_out, c_in = len(grad_output), grad_output.shape[1], feats.shape[1]
    block_in, block_out = block_of(c_in, 128), block_of(c_out, 128)
    num_tiles = triton.cdiv(c_in, block_in) * triton.cdiv(c_out, block_out)
    num_splits = max(1, min(triton.cdiv(num_outputs, 4 * ROWS), NUM_PROGRAMS // (NUM_OFFSETS * num_tiles)))
    wide = block_in * block_out > 64 * 64
    partial = torch.empty(num_splits, c_out, NUM_OFFSETS * c_in, device=feats.device)
    _gradient_kernel[NUM_OFFSETS, num_splits, num_tiles](
        feats.contiguous(),
        grad_output.contiguous(),
        neighbours,
        partial,
        len(feats),
        num_outputs,
        neighbours.shape[1],
        triton.cdiv(num_outputs, num_splits * ROWS) * ROWS,
        c_in,
        c_out,
        ROWS // 2 if wide else ROWS,
        block_in,
        block_out,
        num_warps=8 if wide else 4,
    )
    return partial.sum(0)


def block_of(channels: int, largest: int) -> int:
    return max(MIN_BLOCK, min(largest, triton.next_power_of_2(channels)))
