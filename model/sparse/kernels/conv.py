"""The products of submanifold convolutions on CUDA, each one kernel: gather and matrix product fused (Triton).

Functions without an underscore are the operators of conv.py and child_conv.py, where shapes of arguments stand.
Sums are taken in float32 whatever the inputs are. spconv's kernels, which these replace, add up float16 products in
float16 on the GPUs at hand, which costs ten times the rounding error; benchmarks/conv_cuda.json has both, with times.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

NUM_OFFSETS = 27
NUM_PAIRS = 64  # of octant and tap
ROWS = 128  # output rows, or rows of a sum, that a program takes at a time
# New with every batch: nothing is compiled for their values.
NUMBERS = ["num_inputs", "num_outputs", "num_parents", "num_rows", "rows_per_split"]
MIN_BLOCK = 16  # the smallest matrix product of a tensor core
# Of float32 inputs: three products of TF32 parts keep 22 bits, on tensor cores.
PRECISION = tl.constexpr("tf32x3")
NUM_PROGRAMS = 4096  # enough to fill a GPU several times over


@triton.jit
def _parent_offset(octant, tap):
    """Where in its parent's 3^3 neighbourhood a child in this octant finds the parent that it reads at this tap."""
    x, y, z = octant // 4 + tap // 4, octant // 2 % 2 + tap // 2 % 2, octant % 2 + tap % 2
    return (x * 3 + y) * 3 + z


@triton.jit
def _add_product(
    total,
    feats,
    row,
    present,
    kernel,
    channel_out,
    C_IN: tl.constexpr,
    C_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    STRIDE_IN: tl.constexpr,
    STRIDE_OUT: tl.constexpr,
):
    """Rows of feats, zeros where they are not present, times one element of the kernel; strides are the kernel's."""
    source = row.to(tl.int64) * C_IN
    for start in range(0, C_IN, BLOCK_IN):
        channel = start + tl.arange(0, BLOCK_IN)
        exists = channel < C_IN
        x = tl.load(feats + source[:, None] + channel[None, :], present[:, None] & exists[None, :], 0.0)
        element = kernel + channel[:, None] * STRIDE_IN + channel_out[None, :] * STRIDE_OUT
        w = tl.load(element, exists[:, None] & (channel_out < C_OUT)[None, :], 0.0)
        total = tl.dot(x, w, total, input_precision=PRECISION)
    return total


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
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    exists = channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    total = tl.zeros((ROWS, BLOCK_OUT), tl.float32)
    if not MIRRORED:
        total += tl.load(bias + channel, exists, 0.0).to(tl.float32)[None, :]
    for offset in range(27):
        neighbour = tl.load(neighbours + offset * (long + num_rows) + row, mask=inside, other=-1)
        present = (neighbour >= 0) & (neighbour < num_inputs)
        if tl.max(present.to(tl.int32), 0) > 0:
            if MIRRORED:
                kernel = weight + (26 - offset) * C_OUT
                total = _add_product(
                    total, feats, neighbour, present, kernel, channel, C_IN, C_OUT, BLOCK_IN, 27 * C_OUT, 1
                )
            else:
                kernel = weight + offset * C_IN
                total = _add_product(
                    total, feats, neighbour, present, kernel, channel, C_IN, C_OUT, BLOCK_IN, 1, 27 * C_IN
                )
    target = output + row.to(tl.int64)[:, None] * C_OUT + channel[None, :]
    tl.store(target, total.to(output.dtype.element_ty), inside[:, None] & exists[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _convolve_children_kernel(
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
    """Programs go over parents, of whose children in one octant they take those that exist: these share the kernels."""
    parent, octant = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    exists = channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    child = tl.load(children + octant * (long + num_parents) + parent, mask=parent < num_parents, other=-1)
    present = child >= 0
    if tl.max(present.to(tl.int32), 0) > 0:
        start_value = tl.load(bias + channel, exists, 0.0).to(tl.float32)
        total = tl.zeros((ROWS, BLOCK_OUT), tl.float32) + start_value[None, :]
        for tap in range(8):
            offset = _parent_offset(octant, tap)
            neighbour = tl.load(neighbours + offset * (long + num_rows) + parent, mask=present, other=-1)
            known = (neighbour >= 0) & (neighbour < num_parents)
            kernel = summed + (octant * 8 + tap) * C_IN
            total = _add_product(total, feats, neighbour, known, kernel, channel, C_IN, C_OUT, BLOCK_IN, 1, 64 * C_IN)
        target = output + child.to(tl.int64)[:, None] * C_OUT + channel[None, :]
        tl.store(target, total.to(output.dtype.element_ty), present[:, None] & exists[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _children_input_gradient_kernel(
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
    """Channels are named as those of the product: in is the children's, out the parents'."""
    parent = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = parent < num_parents
    channel = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    total = tl.zeros((ROWS, BLOCK_OUT), tl.float32)
    for pair in range(64):
        # what a child read from this parent at some offset, the parent finds with the mirrored one
        mirrored = 26 - _parent_offset(pair // 8, pair % 8)
        reader = tl.load(neighbours + mirrored * (long + num_rows) + parent, mask=inside, other=-1)
        known = (reader >= 0) & (reader < num_parents)
        child = tl.load(children + pair // 8 * (long + num_parents) + reader, mask=known, other=-1)
        present = child >= 0
        if tl.max(present.to(tl.int32), 0) > 0:
            kernel = summed + pair * C_OUT
            total = _add_product(
                total, grad_output, child, present, kernel, channel, C_IN, C_OUT, BLOCK_IN, 64 * C_OUT, 1
            )
    target = grad_feats + parent.to(tl.int64)[:, None] * C_OUT + channel[None, :]
    tl.store(target, total.to(grad_feats.dtype.element_ty), inside[:, None] & (channel < C_OUT)[None, :])


@triton.jit(do_not_specialize=NUMBERS)
def _kernel_gradient_kernel(
    feats,
    grad_output,
    neighbours,
    children,
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
    CHILDREN: tl.constexpr,
):
    """The sum over output rows for one kernel element; with CHILDREN over parents, for one pair of octant and tap."""
    element, split, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    tiles_in: tl.constexpr = (C_IN + BLOCK_IN - 1) // BLOCK_IN
    in_channel = (tile % tiles_in) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    out_channel = (tile // tiles_in) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    in_exists, out_exists = in_channel < C_IN, out_channel < C_OUT
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    offset = element
    if CHILDREN:
        offset = _parent_offset(element // 8, element % 8)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    end = tl.minimum((split + 1) * rows_per_split, num_outputs)
    for start in range(split * rows_per_split, end, ROWS):
        row = start + tl.arange(0, ROWS)
        output, there = row, row < end
        if CHILDREN:
            output = tl.load(children + element // 8 * (long + num_outputs) + row, mask=there, other=-1)
            there = output >= 0
        neighbour = tl.load(neighbours + offset * (long + num_rows) + row, mask=there, other=-1)
        present = (neighbour >= 0) & (neighbour < num_inputs)
        grad = grad_output + output.to(tl.int64)[None, :] * C_OUT + out_channel[:, None]
        g = tl.load(grad, present[None, :] & out_exists[:, None], 0.0)
        source = feats + neighbour.to(tl.int64)[:, None] * C_IN + in_channel[None, :]
        x = tl.load(source, present[:, None] & in_exists[None, :], 0.0)
        total = tl.dot(g, x, total, input_precision=PRECISION)
    num_elements: tl.constexpr = 64 if CHILDREN else 27
    kernel = (split.to(tl.int64) * C_OUT + out_channel[:, None]) * num_elements + element
    tl.store(partial + kernel * C_IN + in_channel[None, :], total, out_exists[:, None] & in_exists[None, :])


def convolve(feats: Tensor, weight: Tensor, bias: Tensor, num_outputs: int, neighbours: Tensor) -> Tensor:
    output = feats.new_empty(num_outputs, weight.shape[0])
    numbers = len(feats), num_outputs, neighbours.shape[1]
    return _launch(_convolve_kernel, feats, (weight, bias, neighbours), output, numbers, False)


def convolve_input_gradient(grad_output: Tensor, weight: Tensor, num_inputs: int, neighbours: Tensor) -> Tensor:
    grad_feats = grad_output.new_empty(num_inputs, weight.shape[-1])
    numbers = len(grad_output), num_inputs, neighbours.shape[1]
    return _launch(_convolve_kernel, grad_output, (weight, None, neighbours), grad_feats, numbers, True)


def convolve_kernel_gradient(feats: Tensor, grad_output: Tensor, neighbours: Tensor) -> Tensor:
    return _kernel_gradient(feats, grad_output, neighbours, None, len(grad_output), NUM_OFFSETS)


def convolve_children(
    feats: Tensor, summed: Tensor, bias: Tensor, num_outputs: int, neighbours: Tensor, children: Tensor
) -> Tensor:
    output, numbers = feats.new_empty(num_outputs, len(summed)), (len(feats), neighbours.shape[1])
    others = summed, bias, neighbours, children
    return _launch(_convolve_children_kernel, feats, others, output, numbers, octants=(len(children),))


def convolve_children_input_gradient(
    grad_output: Tensor, summed: Tensor, num_parents: int, neighbours: Tensor, children: Tensor
) -> Tensor:
    grad_feats, numbers = grad_output.new_empty(num_parents, summed.shape[2]), (num_parents, neighbours.shape[1])
    others = summed, neighbours, children
    return _launch(_children_input_gradient_kernel, grad_output, others, grad_feats, numbers)


def convolve_children_kernel_gradient(
    feats: Tensor, grad_output: Tensor, neighbours: Tensor, children: Tensor
) -> Tensor:
    return _kernel_gradient(feats, grad_output, neighbours, children, len(feats), NUM_PAIRS)


def _launch(
    kernel: Any,
    feats: Float[Tensor, "num_inputs in_channels"],
    others: tuple[Tensor | None, ...],
    output: Float[Tensor, "num_outputs out_channels"],
    numbers: tuple[int, ...],
    *static: bool,
    octants: tuple[int, ...] = (),
) -> Float[Tensor, "num_outputs out_channels"]:
    """Programs go over blocks of rows, then octants where these are apart, then blocks of output channels.

    `numbers` end with the rows to go over and those of the neighbour table.
    """
    blocks = _block(feats.shape[1], 64), _block(output.shape[1], 128)
    given = feats.contiguous(), *(tensor if tensor is None else tensor.contiguous() for tensor in others), output
    programs = _num_blocks(numbers[-2], ROWS), *octants, _num_blocks(output.shape[1], blocks[1])
    sizes = feats.shape[1], output.shape[1], ROWS, *blocks
    kernel[programs](*given, *numbers, *sizes, *static, num_warps=8 if _is_wide(*blocks) else 4)
    return output


def _kernel_gradient(
    feats: Float[Tensor, "num_inputs in_channels"],
    grad_output: Float[Tensor, "num_outputs out_channels"],
    neighbours: Int[Tensor, "27 num_rows"],
    children: Int[Tensor, "8 num_summed"] | None,
    num_summed: int,
    num_elements: int,
) -> Float[Tensor, "out_channels num_elements in_channels"]:
    """In float32; the order of summation is fixed."""
    c_in, c_out = feats.shape[1], grad_output.shape[1]
    blocks = _block(c_in, 128), _block(c_out, 128)
    wide = _is_wide(*blocks)
    num_tiles = _num_blocks(c_in, blocks[0]) * _num_blocks(c_out, blocks[1])
    num_splits = max(1, min(_num_blocks(num_summed, 4 * ROWS), NUM_PROGRAMS // (num_elements * num_tiles)))
    rows_per_split = _num_blocks(num_summed, num_splits * ROWS) * ROWS
    partial = torch.empty(num_splits, c_out, num_elements, c_in, device=feats.device)
    given = feats.contiguous(), grad_output.contiguous(), neighbours, children, partial
    numbers = len(feats), num_summed, neighbours.shape[1], rows_per_split
    static = c_in, c_out, ROWS // 2 if wide else ROWS, *blocks, children is not None
    _kernel_gradient_kernel[num_elements, num_splits, num_tiles](*given, *numbers, *static, num_warps=8 if wide else 4)
    return partial.sum(0)


def _num_blocks(length: int, block: int) -> int:
    return -(-length // block)  # triton.cdiv costs microseconds on the host, and a step has hundreds of calls


@cache
def _block(channels: int, largest: int) -> int:
    return max(MIN_BLOCK, min(largest, triton.next_power_of_2(channels)))


def _is_wide(block_in: int, block_out: int) -> bool:
    return block_in * block_out > 64 * 64
