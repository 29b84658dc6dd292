"""Nearest codes on CUDA in one kernel (Triton): products on tensor cores, no distance leaves the chip.

Vectors and codes are the sums of two float16 numbers each, which hold 22 bits; three products of these, added up in
float32, cost half of what TF32 needs for as many bits. A row keeps its two lowest scores, so that it is known where
rounding could have decided. benchmarks/nearest_codes.json has times beside others', and the share of the chip's limit.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from .quantizer import LARGEST_HALF, UNDERFLOW, Nearest, halves, max_rounding, nearest_by_blocks


class Tile(NamedTuple):
    """What a program works on at a time, and how."""

    rows: int
    codes: int
    num_warps: int
    num_stages: int


TILES = {64: Tile(128, 64, 8, 3), 128: Tile(64, 64, 4, 2), 256: Tile(32, 32, 4, 2)}  # by the most channels it is for
LANES = 8  # scores of a row that are kept apart: folding a tensor core's product down to these moves no data


@triton.jit
def _folded(x):
    """The left and the right half of each row."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))


@triton.jit(do_not_specialize=["num_vectors", "size"])
def _nearest_kernel(
    vectors,
    origin,
    codebook,
    codes_high,
    codes_low,
    code_unit,
    half_squares,
    indices,
    doubtful,
    num_vectors,
    size,
    max_rounding,
    LARGEST_HALF: tl.constexpr,
    UNDERFLOW: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
    LANES: tl.constexpr,
    NUM_FOLDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_DIM)
    exists = channel < DIM
    inside = (row < num_vectors)[:, None] & exists[None, :]
    place = vectors + row[:, None] * DIM + channel[None, :]
    x = tl.load(place, inside, 0.0).to(tl.float32) - tl.load(origin + channel, exists, 0.0)[None, :]
    square = tl.sum(x * x, 1)
    largest = tl.maximum(tl.max(tl.abs(x), 1), UNDERFLOW)
    x = x * (LARGEST_HALF / largest)[:, None]
    x_high = x.to(tl.float16)
    x_low = (x - x_high.to(tl.float32)).to(tl.float16)
    unit = largest * (1 / LARGEST_HALF) * tl.load(code_unit)

    # Of each lane: the lowest score, the block of CODES it is in, and the lowest of all others.
    best = tl.full((ROWS, LANES), float("inf"), tl.float32)
    second = best
    block_of_best = tl.zeros((ROWS, LANES), tl.int32)
    for block in range(tl.cdiv(size, CODES)):
        code = block * CODES + tl.arange(0, CODES)
        half_square = tl.load(half_squares + code)
        offset = code[:, None] * BLOCK_DIM + channel[None, :]
        c_high = tl.load(codes_high + offset)
        c_low = tl.load(codes_low + offset)
        product = tl.dot(x_high, c_low.T)  # the small ones first, while the sum is small
        product = tl.dot(x_low, c_high.T, product)
        product = tl.dot(x_high, c_high.T, product)
        left, right = _folded(half_square[None, :] - product * unit[:, None])
        lower, higher = tl.minimum(left, right), tl.maximum(left, right)
        for _ in tl.static_range(NUM_FOLDS - 1):
            left, right = _folded(lower)
            other_left, other_right = _folded(higher)
            lower = tl.minimum(left, right)
            higher = tl.minimum(tl.maximum(left, right), tl.minimum(other_left, other_right))
        block_of_best = tl.where(lower < best, block, block_of_best)
        second = tl.minimum(tl.minimum(second, higher), tl.maximum(best, lower))
        best = tl.minimum(best, lower)

    least = tl.min(best, 1)
    first_of = block_of_best * CODES + tl.arange(0, LANES)[None, :]
    first = tl.min(tl.where(best == least[:, None], first_of, size), 1)
    gap = tl.min(tl.where(first_of == first[:, None], second, best), 1) - least
    reach = tl.sqrt(square) + tl.sqrt(tl.maximum(square + 2 * least, 0.0))
    certain = gap > max_rounding * reach * reach + UNDERFLOW

    # Which of the codes that were folded into the best lane.
    z = tl.load(place, inside, 0.0, eviction_policy="evict_first").to(tl.float32)
    nearest = tl.zeros((ROWS,), tl.int32)
    nearest_square = tl.full((ROWS,), float("inf"), tl.float32)
    for member in tl.range(CODES // LANES, num_stages=1):
        code = first + member * LANES
        known = (code < size)[:, None] & exists[None, :]
        c = tl.load(codebook + code[:, None] * DIM + channel[None, :], known, float("inf"))
        difference = tl.where(exists[None, :], z - c, 0.0)
        code_square = tl.sum(difference * difference, 1)
        nearest = tl.where(code_square < nearest_square, code, nearest)
        nearest_square = tl.minimum(nearest_square, code_square)
    tl.store(indices + row, nearest.to(tl.int64), row < num_vectors)
    tl.store(doubtful + row, certain == 0, row < num_vectors)


def nearest(
    z: Float[Tensor, "num_vectors dim"], codebook: Float[Tensor, "codebook_size dim"], origin: Float[Tensor, " dim"]
) -> Nearest:
    return (nearest_by_kernel if z.shape[1] <= max(TILES) else nearest_by_blocks)(z, codebook, origin)


def nearest_by_kernel(
    z: Float[Tensor, "num_vectors dim"],
    codebook: Float[Tensor, "codebook_size dim"],
    origin: Float[Tensor, " dim"],
    tile: Tile | None = None,
) -> Nearest:
    """For up to 256 channels. The origin is where the codes' mean is."""
    size, dim = codebook.shape
    tile = tile or TILES[min(most for most in TILES if most >= dim)]
    block_dim = max(16, triton.next_power_of_2(dim))
    missing = -size % tile.codes
    codes = codebook.double() - origin.double()
    largest = codes.abs().max().clamp(min=UNDERFLOW)
    high, low = halves(F.pad(codes * (LARGEST_HALF / largest), (0, block_dim - dim, 0, missing)))
    half_squares = F.pad(codes.square().sum(1) / 2, (0, missing), value=torch.inf)
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    doubtful = torch.empty(len(z), dtype=torch.bool, device=z.device)
    _nearest_kernel[(triton.cdiv(len(z), tile.rows),)](
        z.contiguous(),
        origin,
        codebook.contiguous(),
        high,
        low,
        (largest / LARGEST_HALF).float(),
        half_squares.float(),
        indices,
        doubtful,
        len(z),
        size,
        max_rounding(dim),
        LARGEST_HALF,
        UNDERFLOW,
        dim,
        block_dim,
        tile.rows,
        tile.codes,
        LANES,
        (tile.codes // LANES).bit_length() - 1,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
    return Nearest(indices, doubtful)
