"""The three products of a convolution on the children of voxels on CUDA, each one kernel (Triton); sums in float32.

Programs go over parents, of whose children in one octant they take those that exist: all of them share the kernels.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from .conv import NUM_PROGRAMS, PRECISION, ROWS, block_of

NUMBERS = ["num_parents", "num_rows", "rows_per_split"]  # see model.conv_cuda
NUM_PAIRS = 64  # of octant and tap


@triton.jit
def _parent_offset(octant, tap):
    """Where in its parent's 3^3 neighbourhood a child in this octant finds the parent that it reads at this tap."""
    x, y, z = octant // 4 + tap // 4, octant // 2 % 2 + tap // 2 % 2, octant % 2 + tap % 2
    return (x * 3 + y) * 3 + z


@triton.jit(do_not_specialize=NUMBERS)
def _convolve_kernel(
    feats,
    summed,
    bias,
    neighbours,
    children,
    output,
    num_parents,
    num_rows,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    parent, octant = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    out_channel = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    out_exists = out_channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    child = tl.load(children + octant * (long + num_parents) + parent, mask=parent < num_parents, other=-1)
    present = child >= 0
    if tl.max(present.to(tl.int32), 0) > 0:
        start_value = tl.load(bias + out_channel, out_exists, 0.0).to(tl.float32)
        total = tl.zeros((ROWS, BLOCK_OUT), tl.float32) + start_value[None, :]
        for tap in range(8):
            offset = _parent_offset(octant, tap)
            neighbour = tl.load(neighbours + offset * (long + num_rows) + parent, mask=present, other=-1)
            known = (neighbour >= 0) & (neighbour < num_parents)
            source = neighbour.to(tl.int64) * C_IN
            for start in range(0, C_IN, BLOCK_IN):
                channel = start + tl.arange(0, BLOCK_IN)
                exists = channel < C_IN
                x = tl.load(feats + source[:, None] + channel[None, :], known[:, None] & exists[None, :], 0.0)
                kernel = summed + (out_channel[None, :] * 64 + octant * 8 + tap) * C_IN + channel[:, None]
                w = tl.load(kernel, out_exists[None, :] & exists[:, None], 0.0)
                total = tl.dot(x, w, total, input_precision=PRECISION)
        target = output + child.to(tl.int64)[:, None] * C_OUT + out_channel[None, :]
        tl.store(target, total.to(output.dtype.element_ty), present[:, None] & out_exists[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _input_gradient_kernel(
    grad_output,
    summed,
    neighbours,
    children,
    grad_feats,
    num_parents,
    num_rows,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    parent = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = parent < num_parents
    in_channel = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    in_exists = in_channel < C_IN
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    total = tl.zeros((ROWS, BLOCK_IN), tl.float32)
    for pair in range(64):
        # what a child read from this parent at some offset, the parent finds with the mirrored one
        mirrored = 26 - _parent_offset(pair // 8, pair % 8)
        reader = tl.load(neighbours + mirrored * (long + num_rows) + parent, mask=inside, other=-1)
        known = (reader >= 0) & (reader < num_parents)
        child = tl.load(children + pair // 8 * (long + num_parents) + reader, mask=known, other=-1)
        present = child >= 0
        if tl.max(present.to(tl.int32), 0) > 0:
            source = child.to(tl.int64) * C_OUT
            for start in range(0, C_OUT, BLOCK_OUT):
                channel = start + tl.arange(0, BLOCK_OUT)
                exists = channel < C_OUT
                g = tl.load(grad_output + source[:, None] + channel[None, :], present[:, None] & exists[None, :], 0.0)
                kernel = summed + (channel[:, None] * 64 + pair) * C_IN + in_channel[None, :]
                w = tl.load(kernel, exists[:, None] & in_exists[None, :], 0.0)
                total = tl.dot(g, w, total, input_precision=PRECISION)
    target = grad_feats + parent.to(tl.int64)[:, None] * C_IN + in_channel[None, :]
    tl.store(target, total.to(grad_feats.dtype.element_ty), inside[:, None] & in_exists[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _kernel_gradient_kernel(
    feats,
    grad_output,
    neighbours,
    children,
    partial,
    num_parents,
    num_rows,
    rows_per_split,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    pair, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles_in: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    in_channel = (tile % tiles_in) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_channel = (tile // tiles_in) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_exists, out_exists = in_channel < C_IN, out_channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    offset = _parent_offset(pair // 8, pair % 8)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    end = tl.minimum((split + 1) * rows_per_split, num_parents)
    for start in range(split * rows_per_split, end, ROWS):
        parent = start + tl.arange(0, ROWS)
        child = tl.load(children + pair // 8 * (long + num_parents) + parent, mask=parent < end, other=-1)
        neighbour = tl.load(neighbours + offset * (long + num_rows) + parent, mask=child >= 0, other=-1)
        present = (neighbour >= 0) & (neighbour < num_parents)
        grad = grad_output + child.to(tl.int64)[None, :] * C_OUT + out_channel[:, None]
        g = tl.load(grad, present[None, :] & out_exists[:, None], 0.0)
        source = feats + neighbour.to(tl.int64)[:, None] * C_IN + in_channel[None, :]
        x = tl.load(source, present[:, None] & in_exists[None, :], 0.0)
        total = tl.dot(g, x, total, input_precision=PRECISION)
    kernel = (split.to(tl.int64) * C_OUT + out_channel[:, None]) * 64 + pair
    tl.store(partial + kernel * C_IN + in_channel[None, :], total, out_exists[:, None] & in_exists[None, :])


def convolve(
    feats: Float[Tensor, "num_parents in_channels"],
    summed: Float[Tensor, "out_channels 64 in_channels"],
    bias: Float[Tensor, " out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
    num_outputs: int,
) -> Float[Tensor, "num_outputs out_channels"]:
    num_parents, c_out, c_in = children.shape[1], summed.shape[0], summed.shape[2]
    output = feats.new_empty(num_outputs, c_out)
    block_in, block_out = block_of(c_in, 64), block_of(c_out, 128)
    _convolve_kernel[triton.cdiv(num_parents, ROWS), children.shape[0], triton.cdiv(c_out, block_out)](
        feats.contiguous(),
        summed.contiguous(),
        bias,
        neighbours,
        children,
        output,
        num_parents,
        neighbours.shape[1],
        c_in,
        c_out,
        ROWS,
        block_in,
        block_out,
        num_warps=8 if block_in * block_out > 64 * 64 else 4,
    )
    return output


def input_gradient(
    grad_output: Float[Tensor, "num_outputs out_channels"],
    summed: Float[Tensor, "out_channels 64 in_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
) -> Float[Tensor, "num_parents in_channels"]:
    num_parents, c_out, c_in = children.shape[1], summed.shape[0], summed.shape[2]
    grad_feats = grad_output.new_empty(num_parents, c_in)
    block_in, block_out = block_of(c_in, 128), block_of(c_out, 64)
    _input_gradient_kernel[triton.cdiv(num_parents, ROWS), triton.cdiv(c_in, block_in)](
        grad_output.contiguous(),
        summed.contiguous(),
        neighbours,
        children,
        grad_feats,
        num_parents,
        neighbours.shape[1],
        c_in,
        c_out,
        ROWS,
        block_in,
        block_out,
        num_warps=8 if block_in * block_out > 64 * 64 else 4,
    )
    return grad_feats


def kernel_gradient(
    feats: Float[Tensor, "num_parents in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_parents"],
) -> Float[Tensor, "out_channels 64 in_channels"]:
    """In float32; the order of summation is fixed."""
    num_parents, c_out, c_in = children.shape[1], grad_output.shape[1], feats.shape[1]
    block_in, block_out = block_of(c_in, 128), block_of(c_out, 128)
    num_tiles = triton.cdiv(c_in, block_in) * triton.cdiv(c_out, block_out)
    num_splits = max(1, min(triton.cdiv(num_parents, 4 * ROWS), NUM_PROGRAMS // (NUM_PAIRS * num_tiles)))
    wide = block_in * block_out > 64 * 64
    partial = torch.empty(num_splits, c_out, NUM_PAIRS, c_in, device=feats.device)
    _kernel_gradient_kernel[NUM_PAIRS, num_splits, num_tiles](
        feats.contiguous(),
        grad_output.contiguous(),
        neighbours,
        children,
        partial,
        num_parents,
        neighbours.shape[1],
        triton.cdiv(num_parents, num_splits * ROWS) * ROWS,
        c_in,
        c_out,
        ROWS // 2 if wide else ROWS,
        block_in,
        block_out,
        num_warps=8 if wide else 4,
    )
    return partial.sum(0)
