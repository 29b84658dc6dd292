"""Nearest-code quantisation with a straight-through gradient (van den Oord et al. 2017)."""

from collections.abc import Sequence
from math import log2
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, Float64, Int
from torch import Tensor, nn

from ..distributed import global_mean
from ..operators import operator

MAX_SCORES = 2**21  # of one block on the CPU: 8 MB of float32
MAX_SCORES_ON_GPU = 2**24  # enough to fill it: 64 MB of float32, 128 MB of float64
SCORES_OF_A_GROUP = 64  # codes whose least score is found first: a minimum is ten times as fast as its place
LARGEST_HALF = 2.0**14  # what numbers are scaled to before they are split: float16 ends at 2^16
UNDERFLOW = 1e-30  # of squares: far below it float32 loses digits


class Quantized(NamedTuple):
    z_q: Float[Tensor, "num_vectors dim"]  # value: the nearest code; gradient: that of z_e, exactly
    indices: Int[Tensor, "num_vectors ..."]  # a column for each level of a ResidualQuantizer
    vq_loss: Float[Tensor, ""]  # mean |sg(z_e) - e|^2: moves the codes only
    commitment_loss: Float[Tensor, ""]  # mean |z_e - sg(e)|^2: moves the encoder only


class VectorQuantizer(nn.Module):
    """A codebook of `size` vectors of length `dim`, zeros until they are filled in.

    How a network quantises, in training and in use, is here alone; k-means is by nearest codes too.
    """

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(size, dim))

    def indices_of(self, z_e: Float[Tensor, "num_vectors dim"]) -> Int[Tensor, " num_vectors"]:
        return nearest_codes(z_e, self.codebook)

    def codes_of(self, indices: Int[Tensor, " num_vectors"]) -> Float[Tensor, "num_vectors dim"]:
        return F.embedding(indices, self.codebook)  # its gradient adds up in a fixed order; that of [] does not

    def forward(self, z_e: Float[Tensor, "num_vectors dim"]) -> Quantized:
        """All in float32, also inside autocast. Squared errors are averaged over vectors and channels."""
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            indices = self.indices_of(z_e)
            codes = self.codes_of(indices)
            vq_loss = global_mean((z_e.detach() - codes).square())
            commitment_loss = global_mean((z_e - codes.detach()).square())
            z_q = _StraightThrough.apply(z_e, codes.detach())
        return Quantized(z_q, indices, vq_loss, commitment_loss)


class ResidualQuantizer(nn.Module):
    """Levels of codes, each of which quantises what the levels before it leave (Zeghidour et al. 2021, algorithm 1).

    A vector is the sum of its codes, one of each level. With a single level it is a VectorQuantizer; with none, nothing
    is quantised: what codes cost is against that.
    """

    levels: Sequence[VectorQuantizer]

    def __init__(self, num_codes: Sequence[int], dim: int):
        super().__init__()
        self.dim = dim
        self.levels = nn.ModuleList(VectorQuantizer(size, dim) for size in num_codes)  # type: ignore[assignment]

    @classmethod
    def of(cls, codebooks: Sequence[Float[Tensor, "_ dim"]]) -> "ResidualQuantizer":
        """With a copy of these codes, a tensor for each level, where they are."""
        quantizer = ResidualQuantizer([len(codes) for codes in codebooks], codebooks[0].shape[1])
        for level, codes in zip(quantizer.levels, codebooks, strict=True):
            level.codebook.data = codes.detach().clone()
        return quantizer

    @property
    def codebooks(self) -> list[nn.Parameter]:
        return [level.codebook for level in self.levels]

    @property
    def num_codes(self) -> list[int]:
        """Of each level."""
        return [len(codes) for codes in self.codebooks]

    @property
    def bits(self) -> float:
        """That a vector's indices take, were all codes equally frequent."""
        return sum(log2(size) for size in self.num_codes)

    @property
    def device(self) -> torch.device:
        return self.codebooks[0].device

    def indices_of(self, z_e: Float[Tensor, "num_vectors dim"]) -> Int[Tensor, "num_vectors num_levels"]:
        """The same as forward() finds, to the bit."""
        with torch.autocast(z_e.device.type, enabled=False):
            residual, indices = z_e.float(), []
            for level in self.levels:
                indices.append(level.indices_of(residual))
                residual = residual - level.codes_of(indices[-1])
            return torch.stack(indices, 1)

    def codes_of(self, indices: Int[Tensor, "num_vectors num_levels"]) -> Float[Tensor, "num_vectors dim"]:
        """The sum over levels, in their order."""
        first, *others = (level.codes_of(column) for level, column in zip(self.levels, indices.unbind(1), strict=True))
        return sum(others, start=first)

    def residuals(
        self, z_e: Float[Tensor, "num_vectors dim"], indices: Int[Tensor, "num_vectors num_levels"]
    ) -> list[Float[Tensor, "num_vectors dim"]]:
        """What each level was given to quantise."""
        given = [z_e]
        for level, column in zip(self.levels[:-1], indices.unbind(1), strict=False):
            given.append(given[-1] - level.codes_of(column))
        return given

    def forward(self, z_e: Float[Tensor, "num_vectors dim"]) -> Quantized:
        """All in float32, also inside autocast. The losses are sums over levels of each level's own mean squares."""
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            if not self.levels:
                nothing = z_e.new_zeros(())
                return Quantized(z_e, z_e.new_empty((len(z_e), 0), dtype=torch.int64), nothing, nothing)
            residual, levels = z_e, []
            for level in self.levels:
                levels.append(level(residual))
                residual = residual - level.codes_of(levels[-1].indices).detach()
            indices = torch.stack([level.indices for level in levels], 1)
            z_q = _StraightThrough.apply(z_e, self.codes_of(indices).detach())
            vq_loss = torch.stack([level.vq_loss for level in levels]).sum()
            commitment_loss = torch.stack([level.commitment_loss for level in levels]).sum()
        return Quantized(z_q, indices, vq_loss, commitment_loss)


class _StraightThrough(torch.autograd.Function):
    """Forward the codes, backward the identity; z + (code - z) would round the codes."""

    @staticmethod
    def forward(ctx: object, z_e: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Nearest(NamedTuple):
    indices: Int[Tensor, " num_vectors"]
    doubtful: Bool[Tensor, " num_vectors"]  # the second nearest is so close that rounding may have decided


@torch.no_grad()
def nearest_codes(
    z: Float[Tensor, "num_vectors dim"], codebook: Float[Tensor, "codebook_size dim"]
) -> Int[Tensor, " num_vectors"]:
    """Index of the nearest code by Euclidean distance, of equal codes the lower, in blocks of bounded memory.

    argmin of the scores |c|^2 / 2 - x.c, where both are moved to the codebook's mean and lose least to rounding. A
    vector whose two lowest scores are closer than rounding can have moved them (max_rounding) gets its code in float64.
    """
    if z.shape[1] != codebook.shape[1]:
        raise ValueError(f"latents have {z.shape[1]} channels but codes have {codebook.shape[1]}")
    with torch.autocast(z.device.type, enabled=False):
        codebook = codebook.float()
        origin = codebook.mean(0)
        indices, doubtful = nearest(z, codebook, origin)
        again = doubtful.nonzero().flatten()  # the only place where the CPU waits for a GPU
        if len(again):
            indices[again] = _nearest_in_float64(z, again, codebook.double(), origin.double())
    return indices


def _nearest_in_float64(
    z: Float[Tensor, "num_vectors dim"],
    rows: Int[Tensor, " num_rows"],
    codebook: Float64[Tensor, "codebook_size dim"],
    origin: Float64[Tensor, " dim"],
) -> Int[Tensor, " num_rows"]:
    """Of rows of z. Products with equal codes may differ in the last digit: the first code within that is compared."""
    codes = codebook - origin
    half_squares = codes.square().sum(1) / 2
    found = []
    for part in rows.split(_rows_of_a_block(codebook)):
        x = z[part].double() - origin
        scores = torch.addmm(half_squares, x, codes.T, alpha=-1)
        least, nearest = scores.min(1)
        rounding = 2.0**-29 * max_rounding(x.shape[1]) * _reach(x, least).square()
        first = (scores <= (least + rounding)[:, None]).byte().argmax(1)
        as_near = (x - codes[first]).square().sum(1) <= (x - codes[nearest]).square().sum(1)
        found.append(torch.where(as_near, first, nearest))
    return torch.cat(found)


@operator("(Tensor z, Tensor codebook, Tensor origin) -> (Tensor, Tensor)", cuda=".kernel")
def nearest(
    z: Float[Tensor, "num_vectors dim"], codebook: Float[Tensor, "codebook_size dim"], origin: Float[Tensor, " dim"]
) -> tuple[Int[Tensor, " num_vectors"], Bool[Tensor, " num_vectors"]]:
    """What Nearest holds, in float32. The origin is where the codes' mean is."""
    return nearest_by_blocks(z, codebook, origin)


def nearest_by_blocks(
    z: Float[Tensor, "num_vectors dim"], codebook: Float[Tensor, "codebook_size dim"], origin: Float[Tensor, " dim"]
) -> Nearest:
    """In plain torch. The origin is where the codes' mean is."""
    codes = F.pad(codebook - origin, (0, 0, 0, -len(codebook) % SCORES_OF_A_GROUP))
    half_squares = codes.square().sum(1) / 2
    half_squares[len(codebook) :] = torch.inf
    indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
    doubtful = torch.empty(len(z), dtype=torch.bool, device=z.device)
    block = _rows_of_a_block(codes)
    scores = torch.empty(min(block, len(z)), len(codes), device=z.device)
    for start in range(0, len(z), block):
        rows = slice(start, start + block)
        x = z[rows].float() - origin
        torch.addmm(half_squares, x, codes.T, alpha=-1, out=scores[: len(x)])
        indices[rows], best, second = _two_least(scores[: len(x)])
        gap = second - best
        doubtful[rows] = ~(gap > max_rounding(x.shape[1]) * _reach(x, best).square() + UNDERFLOW)
    return Nearest(indices, doubtful)


def _two_least(scores: Float[Tensor, "rows num_scores"]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: where the least score is, that score and the next."""
    groups = scores.view(-1, SCORES_OF_A_GROUP)
    of_groups = groups.amin(1).view(len(scores), -1)
    group = of_groups.argmin(1)
    rows = torch.arange(len(scores), device=scores.device)
    members = groups.index_select(0, rows * of_groups.shape[1] + group)
    place = members.argmin(1, keepdim=True)
    best = members.gather(1, place)[:, 0]
    others = of_groups.scatter_(1, group[:, None], torch.inf).amin(1)
    second = torch.minimum(members.scatter_(1, place, torch.inf).amin(1), others)
    return group * SCORES_OF_A_GROUP + place[:, 0], best, second


def _reach(x: Float[Tensor, "rows dim"], score: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """|x| + |x - c|, c being the code with this score."""
    square = x.square().sum(1)
    return square.sqrt() + (square + 2 * score).clamp(min=0).sqrt()


def _rows_of_a_block(codebook: Tensor) -> int:
    return max(1, (MAX_SCORES_ON_GPU if codebook.is_cuda else MAX_SCORES) // len(codebook))


def max_rounding(dim: int) -> float:
    """By how much rounding can change the difference of two scores, over (|x| + |x - c|)^2, c being the code found.

    No code that is nearer than c has a greater norm than |x| + |x - c|, so that both factors of x.c are within it. In
    units of 2^-24 of its square a score loses up to 3 a channel in sums (a tensor core adds four products at a time, or
    more, and cuts off), 12 by splitting into float16 numbers, and 10 by moving, scaling and |c|^2 / 2. That twice, 1.5
    a channel and 5 more for telling folded codes apart, and a sixteenth of all for the rounding of c's own distance.
    """
    return (8 * dim + 64) * 2.0**-24


def halves(values: Float[Tensor, "..."]) -> tuple[Float16[Tensor, "..."], Float16[Tensor, "..."]]:
    """Two float16 numbers whose sum is a value to 2^-22 of it, or to 2^-25 where that is more; up to LARGEST_HALF."""
    high = values.to(torch.float16)
    return high, (values - high).to(torch.float16)
