"""k-means of latents: what stage 1 is, once the encoder is frozen."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..distributed import all_reduce_min, all_reduce_sum, own_part
from ..errors import InputError
from .quantizer import nearest_codes

SEEDING_CANDIDATES_PER_CODE = 32  # k-means++ looks at a subsample of this size
BLOCK = 2**15  # vectors summed at a time: larger copies are fresh pages on a CPU, and seeding took twelve times as long


class Lloyd(NamedTuple):
    """What one pass over all vectors gives."""

    counts: Int[Tensor, " codebook_size"]
    sums: Float64[Tensor, "codebook_size dim"]  # so that the order of summation does not show in the codes
    squared_errors: Float[Tensor, " num_vectors"]
    indices: Int[Tensor, " num_vectors"]


def kmeans(
    vectors: Float[Tensor, "num_vectors dim"], size: int, *, iterations: int, generator: torch.Generator
) -> Float[Tensor, "size dim"]:
    """Codes by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd's iteration; empty codes move to the error.

    Exact repeats of a vector count once: a pattern that every shape has, such as a flat face, must not draw the codes
    to itself. Of several ranks, each has to be given all vectors and passes over its part. Raises InputError where
    there are fewer distinct vectors than codes.
    """
    distinct = distinct_vectors(vectors, size)
    codes = _seed(distinct, size, generator)
    part = own_part(distinct)
    for _ in range(iterations):
        draws = own_part(torch.rand(len(distinct), generator=generator, dtype=torch.float64))
        codes = _update(codes, part, lloyd_pass(part, codes), draws.to(codes.device))
    return codes


def distinct_vectors(vectors: Float[Tensor, "num_vectors dim"], size: int) -> Float[Tensor, "num_distinct dim"]:
    """Raises InputError where they are too few for `size` codes."""
    distinct = vectors.unique(dim=0)
    if len(distinct) < size:
        raise InputError(
            f"there are {len(distinct)} distinct latent vectors for {size} codes; "
            "set codebook.num_codes lower, or encode more shapes or symmetries"
        )
    return distinct


def lloyd_pass(vectors: Float[Tensor, "num_vectors dim"], codes: Float[Tensor, "size dim"]) -> Lloyd:
    indices = nearest_codes(vectors, codes)
    sums = torch.zeros_like(codes, dtype=torch.float64)
    for part, of in zip(vectors.split(BLOCK), indices.split(BLOCK), strict=True):
        sums.index_add_(0, of, part.double())
    counts = torch.bincount(indices, minlength=len(codes))
    return Lloyd(counts, sums, _squared_errors(vectors, codes, indices), indices)


def _squared_errors(
    vectors: Float[Tensor, "num_vectors dim"], codes: Float[Tensor, "size dim"], indices: Int[Tensor, " num_vectors"]
) -> Float[Tensor, " num_vectors"]:
    errors = vectors.new_empty(len(vectors))
    for part, error, of in zip(vectors.split(BLOCK), errors.split(BLOCK), indices.split(BLOCK), strict=True):
        torch.sum((part - codes[of]).square(), 1, out=error)
    return errors


def arrival_times(
    squared_errors: Float[Tensor, " num_vectors"], draws: Float64[Tensor, " num_vectors"]
) -> Float64[Tensor, " num_vectors"]:
    """Exponential arrival times of these rates, from uniform draws: the first is a draw in proportion to the errors.

    The first few are a draw without replacement (Efraimidis and Spirakis 2006). Infinite where the error is 0.
    """
    return -torch.log1p(-draws) / squared_errors


def _update(
    codes: Float[Tensor, "size dim"],
    vectors: Float[Tensor, "num_vectors dim"],
    result: Lloyd,
    draws: Float64[Tensor, " num_vectors"],
) -> Float[Tensor, "size dim"]:
    """Codes to the means of their members; each empty one into a code of largest total squared error instead.

    There it takes the place of a member, drawn by the squared error to where that code is now: a member on its code
    would make two codes of one.
    """
    counts, sums = all_reduce_sum(result.counts), all_reduce_sum(result.sums)
    used = counts > 0
    codes = torch.where(used[:, None], (sums / counts.clamp(min=1)[:, None]).to(codes.dtype), codes)
    empty = (~used).nonzero().flatten()
    if not len(empty):
        return codes
    squared_errors = _squared_errors(vectors, codes, result.indices)
    errors = torch.zeros_like(sums[:, 0]).index_add_(0, result.indices, squared_errors.double())
    totals = all_reduce_sum(errors)
    crowded = totals.argsort(descending=True, stable=True)[: len(empty)]
    crowded = crowded[totals[crowded] > 0]  # else every vector sits on its code: nothing left to split
    times = arrival_times(squared_errors, draws)
    first = torch.full_like(totals, torch.inf).scatter_reduce_(0, result.indices, times, "amin")
    won = (times == all_reduce_min(first)[result.indices]) & times.isfinite()
    winners = torch.zeros_like(codes)
    winners[result.indices[won]] = vectors[won]
    codes[empty[: len(crowded)]] = all_reduce_sum(winners)[crowded]
    return codes


def _seed(
    distinct: Float[Tensor, "num_distinct dim"], size: int, generator: torch.Generator
) -> Float[Tensor, "size dim"]:
    """Each next code is one of the candidates, drawn by its squared distance to the codes so far.

    Nothing is copied to the CPU in between.
    """
    keep = torch.randperm(len(distinct), generator=generator)[: size * SEEDING_CANDIDATES_PER_CODE]
    candidates = distinct[keep.to(distinct.device)]
    draws = torch.rand(size, generator=generator, dtype=torch.float64).to(candidates.device)
    codes = torch.empty_like(candidates[:size])
    nearest = torch.full((len(candidates),), torch.inf, device=candidates.device)
    block = BLOCK if candidates.device.type == "cpu" else len(candidates)
    blocks = list(zip(candidates.split(block), nearest.split(block), strict=True))
    weights = torch.ones_like(nearest)
    for k in range(size):
        codes[k : k + 1] = candidates.index_select(0, _draw(weights, draws[k : k + 1]))
        for part, distances in blocks:
            torch.minimum(distances, (part - codes[k]).square_().sum(1), out=distances)
        weights = nearest
    return codes


def _draw(weights: Float[Tensor, " num_vectors"], uniform: Float64[Tensor, "1"]) -> Int[Tensor, "1"]:
    """An index drawn in proportion to the weights. Sums are of integers, so that their order does not show."""
    largest = weights.max().clamp(min=torch.finfo(weights.dtype).tiny)  # of distances that are all rounded to 0, too
    steps = (weights.double() * (2.0**52 / len(weights)) / largest).long()
    ends = steps.cumsum(0)
    return torch.searchsorted(ends, (uniform * ends[-1]).long(), right=True).clamp_(max=len(weights) - 1)
