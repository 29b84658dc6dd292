"""Figures of a codebook: how its codes are used, what it loses, and what any code of as many bits would."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..distributed import all_reduce_sum
from .quantizer import UNDERFLOW, ResidualQuantizer

VECTORS_AT_A_TIME = 2**18  # their codes stay small


@dataclass(frozen=True)
class CodebookStatistics:
    """How a set of tokens uses the codebook."""

    num_tokens: int
    usage: float  # share of the codes that occur at all
    perplexity: float  # exp of the entropy of code frequencies: codebook size when all are equally frequent
    entropy_bits: float  # what a token is worth to an ideal compressor
    top_share: float  # share of the tokens taken by the most frequent code


def entropy_of(frequency: Float[Tensor, " codebook_size"]) -> Float[Tensor, ""]:
    """In nats, of frequencies that add up to 1; its exponential is the perplexity."""
    return -torch.special.xlogy(frequency, frequency).sum()


def codebook_statistics(counts: Int[Tensor, " codebook_size"]) -> CodebookStatistics:
    """From how often each code occurs. Raises ValueError where there are no tokens."""
    num_tokens = int(counts.sum())
    if num_tokens == 0:
        raise ValueError("no tokens were counted; codebook usage is undefined")
    frequency = counts.double() / num_tokens
    entropy = entropy_of(frequency)
    return CodebookStatistics(
        num_tokens=num_tokens,
        usage=float((counts > 0).double().mean()),
        perplexity=float(entropy.exp()),
        entropy_bits=float(entropy / torch.log(torch.tensor(2.0))),
        top_share=float(frequency.max()),
    )


def usage_of_batch(indices: Int[Tensor, " num_vectors"], codebook_size: int) -> tuple[Tensor, Tensor]:
    """Usage and perplexity within one batch, as scalars on the device, so that training need not wait for them."""
    counts = torch.zeros(codebook_size, device=indices.device)
    counts.scatter_add_(0, indices, torch.ones_like(indices, dtype=counts.dtype))
    counts = all_reduce_sum(counts)
    frequency = counts / counts.sum()
    return (frequency > 0).float().mean(), entropy_of(frequency).exp()


def numbers_of_levels(num_levels: int) -> list[str]:
    """How columns of a history end: the first level's have no number."""
    return ["", *(f"_{level}" for level in range(2, num_levels + 1))][:num_levels]


def history_columns(indices: Int[Tensor, "num_vectors num_levels"], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Usage and perplexity of each level among these indices, for a history."""
    figures = {}
    for number, column, size in zip(numbers_of_levels(len(sizes)), indices.unbind(1), sizes, strict=True):
        figures[f"codebook_usage{number}"], figures[f"perplexity{number}"] = usage_of_batch(column, size)
    return figures


def statistics_of_levels(
    quantizer: ResidualQuantizer, vectors: Float[Tensor, "num_vectors dim"]
) -> list[CodebookStatistics]:
    """How these vectors use the codes of each level."""
    indices = quantizer.indices_of(vectors)
    return [
        codebook_statistics(torch.bincount(column, minlength=size))
        for column, size in zip(indices.unbind(1), quantizer.num_codes, strict=True)
    ]


@torch.no_grad()
def normalised_error(
    vectors: Float[Tensor, "num_vectors dim"],
    quantizer: ResidualQuantizer,
    *,
    reference: Float[Tensor, "num_reference dim"],
) -> float:
    """Mean squared distance to the sum of the codes, over the variance of the reference: the held-out latents.

    0 loses nothing, 1 is as good as their mean alone. The vectors may be on another device than the codes.
    """
    variance = (reference - reference.mean(0)).square().sum(1).mean()
    squares = torch.zeros((), dtype=torch.float64, device=quantizer.device)
    for part in (part.to(quantizer.device) for part in vectors.split(VECTORS_AT_A_TIME)):
        squares += (part - quantizer.codes_of(quantizer.indices_of(part))).square().sum()
    return float(squares.to(variance.device) / len(vectors) / variance.clamp(min=UNDERFLOW))


def gaussian_error_bound(vectors: Float[Tensor, "num_vectors dim"], *, bits: float) -> float:
    """Share of the variance that any code of so many bits a vector loses on a Gaussian of the same covariance.

    Reverse water-filling (Cover and Thomas 2006, theorem 10.3.3). Latents are no Gaussian and can fall below it; an
    error far above it says that the codebook is the limit, one near it that the bits are.
    """
    variances = _principal_variances(vectors.double())
    return float(variances.clamp(max=water_level(variances, bits=bits)).sum() / variances.sum())


def spectrum(vectors: Float[Tensor, "num_vectors dim"]) -> dict[str, float]:
    """Share of the variance in the first 1, 2, 4, ... principal directions."""
    variances = _principal_variances(vectors).flip(0)
    shares = (variances.cumsum(0) / variances.sum()).tolist()
    return {str(2**k): shares[2**k - 1] for k in range(len(shares).bit_length()) if 2**k <= len(shares)}


def _principal_variances(vectors: Float[Tensor, "num_vectors dim"]) -> Float[Tensor, " dim"]:
    """Along the principal directions, the narrowest first."""
    return torch.linalg.eigvalsh(torch.atleast_2d(torch.cov(vectors.T))).clamp(min=0)


def water_level(variances: Float[Tensor, " dim"], *, bits: float) -> float:
    """What a Gaussian of these variances loses in each direction that is wider, at this rate (theorem 10.3.3 again)."""
    low, high = variances.new_zeros(()), variances.max()
    for _ in range(100):  # by bisection
        level = (low + high) / 2
        rate = (variances.clamp(min=level) / level).log2().sum() / 2
        low, high = (level, high) if rate > bits else (low, level)
    return float(high)
