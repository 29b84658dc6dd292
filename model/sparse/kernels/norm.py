"""Group norm, SiLU and pooling on CUDA (Triton): the input is read twice in each direction, and only it is kept.

Functions without an underscore are the operators of norm.py, where shapes of arguments stand. A program takes a part of
the rows of one shape. Sums are in float32 and in a fixed order.
"""

from collections.abc import Sequence
from functools import cache

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

TILE = 4096  # elements at a time
NUM_PROGRAMS = 2048


@triton.jit
def _part(offsets, shape, split, num_splits, ROWS: tl.constexpr):
    """First and last row of a part of a shape, in the order of ShapeRows."""
    start, end = tl.load(offsets + shape), tl.load(offsets + shape + 1)
    length = tl.cdiv(tl.cdiv(end - start, num_splits), ROWS) * ROWS
    first = tl.minimum(start + split * length, end)
    return first, tl.minimum(first + length, end)


@triton.jit
def _first_row(feats, order, offsets, shape, C: tl.constexpr):
    """Of a shape; of any where it has none."""
    place = tl.minimum(tl.load(offsets + shape), tl.load(offsets + tl.num_programs(0)) - 1)
    return feats + tl.load(order + place).to(tl.int64) * C


@triton.jit
def _sums_kernel(feats, order, offsets, partial, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """Sums of x - p and of its square, p the first row of the shape: the variance is no difference of large squares."""
    shape, split = tl.program_id(0), tl.program_id(1)
    num_splits = tl.num_programs(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < C
    pivot = tl.load(_first_row(feats, order, offsets, shape, C) + channel, exists, 0.0).to(tl.float32)
    sums, squares = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    first, last = _part(offsets, shape, split, num_splits, ROWS)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        row = tl.load(order + place, place < last, 0).to(tl.int64)
        there = (place < last)[:, None] & exists[None, :]
        x = tl.load(feats + row[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
        away = tl.where(there, x - pivot[None, :], 0.0)
        sums += tl.sum(away, 0)
        squares += tl.sum(away * away, 0)
    target = partial + ((split * tl.num_programs(0) + shape) * 2) * C + channel
    tl.store(target, sums, exists)
    tl.store(target + C, squares, exists)


@triton.jit
def _moments_kernel(
    feats, order, offsets, sums, moments, eps, C: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """From sums by channel to the moments of groups of WIDTH channels."""
    shape = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    exists = channel < C
    count = tl.maximum(tl.load(offsets + shape + 1) - tl.load(offsets + shape), 1).to(tl.float32)
    pivot = _first_row(feats, order, offsets, shape, C)
    by_channel = sums + shape * 2 * C
    group = channel // WIDTH * WIDTH
    mean = tl.zeros((BLOCK,), tl.float32)
    for member in range(WIDTH):
        away = tl.load(by_channel + group + member, exists, 0.0) / count
        mean += (tl.load(pivot + group + member, exists, 0.0).to(tl.float32) + away) / WIDTH
    variance = tl.zeros((BLOCK,), tl.float32)
    for member in range(WIDTH):
        away = tl.load(by_channel + group + member, exists, 0.0) / count
        square = tl.load(by_channel + C + group + member, exists, 0.0) / count
        from_mean = tl.load(pivot + group + member, exists, 0.0).to(tl.float32) + away - mean
        variance += (square - away * away + from_mean * from_mean) / WIDTH
    tl.store(moments + shape * 2 * C + channel, mean, exists)
    tl.store(moments + shape * 2 * C + C + channel, 1 / tl.sqrt(tl.maximum(variance, 0.0) + eps), exists)


@triton.jit
def _norm_silu(x, mean, inverse_std, weight, bias):
    """The result, its derivative by the normed value with weight and bias, and the normed value."""
    normed = (x - mean) * inverse_std
    scaled = normed * weight + bias
    sigmoid = tl.sigmoid(scaled)
    return scaled * sigmoid, sigmoid * (1 + scaled * (1 - sigmoid)), normed


@triton.jit(do_not_specialize=["num_coarse"])
def _forward_kernel(
    feats,
    order,
    offsets,
    moments,
    weight,
    bias,
    children,
    activated,
    plain,
    num_coarse,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    POOL: tl.constexpr,
):
    """Rows and their order are those of the result: the input's, or with POOL the pooled ones."""
    shape, split = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < C
    mean = tl.load(moments + shape * 2 * C + channel, exists, 0.0)[None, :]
    inverse_std = tl.load(moments + shape * 2 * C + C + channel, exists, 0.0)[None, :]
    w = tl.load(weight + channel, exists, 0.0).to(tl.float32)[None, :]
    b = tl.load(bias + channel, exists, 0.0).to(tl.float32)[None, :]
    first, last = _part(offsets, shape, split, tl.num_programs(1), ROWS)
    long = tl.zeros((1,), tl.int64)  # offsets can exceed 32 bits
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = place < last
        row = tl.load(order + place, inside, 0).to(tl.int64)
        there = inside[:, None] & exists[None, :]
        target = row[:, None] * C + channel[None, :]
        if POOL:
            sum_activated = tl.zeros((ROWS, BLOCK), tl.float32)
            sum_plain = tl.zeros((ROWS, BLOCK), tl.float32)
            count = tl.full((ROWS,), 1.0, tl.float32)
            for octant in range(8):
                child = tl.load(children + octant * (long + num_coarse) + row, inside, -1).to(tl.int64)
                present = (child >= 0)[:, None] & exists[None, :]
                x = tl.load(feats + child[:, None] * C + channel[None, :], present, 0.0).to(tl.float32)
                y, _, _ = _norm_silu(x, mean, inverse_std, w, b)
                sum_activated += tl.where(present, y, 0.0)
                sum_plain += x
                count += (child >= 0).to(tl.float32)
            share = 1 / count[:, None]
            tl.store(activated + target, (sum_activated * share).to(activated.dtype.element_ty), there)
            tl.store(plain + target, (sum_plain * share).to(plain.dtype.element_ty), there)
        else:
            x = tl.load(feats + target, there, 0.0).to(tl.float32)
            y, _, _ = _norm_silu(x, mean, inverse_std, w, b)
            tl.store(activated + target, y.to(activated.dtype.element_ty), there)


@triton.jit
def _backward_kernel(
    feats,
    order,
    offsets,
    moments,
    weight,
    bias,
    grad_activated,
    grad_plain,
    parent,
    divisor,
    partial,
    group_means,
    grad_feats,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    POOL: tl.constexpr,
    WIDTH: tl.constexpr,
    SUMS: tl.constexpr,
):
    """With SUMS, what the gradients of bias and weight add up from; without, the gradient of the input.

    `group_means` has, by shape and group, what a change of x does to the group's mean and variance.
    """
    shape, split = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, BLOCK)
    exists = channel < C
    mean = tl.load(moments + shape * 2 * C + channel, exists, 0.0)[None, :]
    inverse_std = tl.load(moments + shape * 2 * C + C + channel, exists, 0.0)[None, :]
    w = tl.load(weight + channel, exists, 0.0).to(tl.float32)[None, :]
    b = tl.load(bias + channel, exists, 0.0).to(tl.float32)[None, :]
    sums, products = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    if not SUMS:
        groups: tl.constexpr = C // WIDTH
        by_mean = tl.load(group_means + shape * 2 * groups + channel // WIDTH, exists, 0.0)[None, :]
        by_variance = tl.load(group_means + shape * 2 * groups + groups + channel // WIDTH, exists, 0.0)[None, :]
    first, last = _part(offsets, shape, split, tl.num_programs(1), ROWS)
    for start in range(first, last, ROWS):
        place = start + tl.arange(0, ROWS)
        inside = place < last
        row = tl.load(order + place, inside, 0).to(tl.int64)
        there = inside[:, None] & exists[None, :]
        x = tl.load(feats + row[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
        if POOL:
            coarse = tl.load(parent + row, inside, 0).to(tl.int64)
            share = 1 / tl.load(divisor + coarse, inside, 1.0)[:, None]
            source = coarse[:, None] * C + channel[None, :]
            g = tl.load(grad_activated + source, there, 0.0).to(tl.float32) * share
            direct = tl.load(grad_plain + source, there, 0.0).to(tl.float32) * share
        else:
            g = tl.load(grad_activated + row[:, None] * C + channel[None, :], there, 0.0).to(tl.float32)
            direct = tl.zeros_like(g)
        _, slope, normed = _norm_silu(x, mean, inverse_std, w, b)
        grad = tl.where(there, g * slope, 0.0)
        if SUMS:
            sums += tl.sum(grad, 0)
            products += tl.sum(grad * normed, 0)
        else:
            grad_x = (grad * w - by_mean - normed * by_variance) * inverse_std + direct
            tl.store(grad_feats + row[:, None] * C + channel[None, :], grad_x.to(grad_feats.dtype.element_ty), there)
    if SUMS:
        target = partial + ((split * tl.num_programs(0) + shape) * 2) * C + channel
        tl.store(target, sums, exists)
        tl.store(target + C, products, exists)


def norm_silu(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor,
    shape_rows: Sequence[Tensor],
    num_groups: int,
    eps: float,
    tables: Sequence[Tensor],
) -> list[Tensor]:
    moments = _moments(feats, shape_rows, num_groups, eps)
    children, result_rows = (tables[0], tables[2:]) if tables else (None, shape_rows)
    num_shapes, pooled, channels = len(moments), children is not None, feats.shape[1]
    results = [feats.new_empty(len(result_rows[0]), channels) for _ in range(2 if pooled else 1)]
    given = feats, *result_rows, moments, weight, bias, children, results[0], results[-1], len(results[0])
    _forward_kernel[num_shapes, _num_splits(num_shapes)](*given, channels, *_tile(channels), pooled)
    return [moments, *results]


def norm_silu_gradients(
    feats: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: Tensor,
    shape_rows: Sequence[Tensor],
    num_groups: int,
    grads: Sequence[Tensor],
    tables: Sequence[Tensor],
) -> list[Tensor]:
    num_shapes, channels = len(moments), feats.shape[1]
    (block, rows), width = _tile(channels), channels // num_groups
    programs = num_shapes, _num_splits(num_shapes)
    partial = torch.empty(programs[1], num_shapes, 2, channels, device=feats.device)
    grad_feats = torch.empty_like(feats)
    given = feats, *shape_rows, moments, weight, bias, grads[0], grads[-1], *(tables or (None, None)), partial
    static = channels, block, rows, len(tables) > 0, width
    _backward_kernel[programs](*given, None, None, *static, True)
    sums = partial.sum(0)  # by shape and channel
    counts = shape_rows[1].diff()[:, None, None].clamp(min=1) * width
    group_means = (sums * weight).view(num_shapes, 2, num_groups, width).sum(3) / counts
    _backward_kernel[programs](*given, group_means, grad_feats, *static, False)
    grad_bias, grad_weight = sums.sum(0)
    return [grad_feats, grad_weight, grad_bias]


def _moments(
    feats: Float[Tensor, "num_voxels channels"], shape_rows: Sequence[Tensor], num_groups: int, eps: float
) -> Float[Tensor, "num_shapes 2 channels"]:
    order, offsets = shape_rows
    num_shapes, channels = len(offsets) - 1, feats.shape[1]
    block, rows = _tile(channels)
    num_splits = _num_splits(num_shapes)
    partial = torch.empty(num_splits, num_shapes, 2, channels, device=feats.device)
    _sums_kernel[num_shapes, num_splits](feats, order, offsets, partial, channels, block, rows)
    moments = torch.empty(num_shapes, 2, channels, device=feats.device)
    sums = partial.sum(0)
    _moments_kernel[(num_shapes,)](feats, order, offsets, sums, moments, eps, channels, block, channels // num_groups)
    return moments


def _num_splits(num_shapes: int) -> int:
    return max(1, NUM_PROGRAMS // num_shapes)


@cache
def _tile(channels: int) -> tuple[int, int]:
    """Channels, rounded up to a power of two, and rows."""
    block = triton.next_power_of_2(channels)
    return block, max(1, TILE // block)
