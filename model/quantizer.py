"""Nearest-code quantisation with a straight-through gradient (van den Oord et al. 2017), and codebook statistics."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from model.distributed import mean, total

MAX_ROUNDING = 1e-4  # of the squared distance to the nearest code: above it, float64 decides
MAX_DISTANCES = 2**24  # elements of one block of the distance matrix: 64 MB of float32


class Quantized(NamedTuple):
    z_q: Float[Tensor, "num_vectors dim"]  # value: the nearest code; gradient: that of z_e, exactly
    indices: Int[Tensor, " num_vectors"]
    vq_loss: Tensor  # mean |sg(z_e) - e|^2: moves the codes only
    commitment_loss: Tensor  # mean |z_e - sg(e)|^2: moves the encoder only


class VectorQuantizer(nn.Module):
    """A codebook of `size` vectors of length `dim`."""

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.codebook = nn.Parameter(torch.zeros(size, dim))

    def forward(self, z_e: Float[Tensor, "num_vectors dim"]) -> Quantized:
        """All in float32, also inside autocast. Squared errors are averaged over vectors and channels."""
        with torch.autocast(z_e.device.type, enabled=False):
            z_e = z_e.float()
            indices = nearest_codes(z_e, self.codebook)
            codes = F.embedding(indices, self.codebook)  # its gradient adds up in a fixed order; that of [] does not
            vq_loss = mean((z_e.detach() - codes).square())
            commitment_loss = mean((z_e - codes.detach()).square())
            z_q = _StraightThrough.apply(z_e, codes.detach())
        return Quantized(z_q, indices, vq_loss, commitment_loss)


class _StraightThrough(torch.autograd.Function):
    """Forward the codes, backward the identity; z + (code - z) would round the codes."""

    @staticmethod
    def forward(ctx: object, z_e: Tensor, codes: Tensor) -> Tensor:
        return codes.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@torch.no_grad()
def nearest_codes(
    z: Float[Tensor, "num_vectors dim"], codebook: Float[Tensor, "codebook_size dim"]
) -> Int[Tensor, " num_vectors"]:
    """Index of the nearest code by Euclidean distance, ties to the lower index, in blocks of bounded memory.

    argmin of |c|^2 / 2 - z.c, after moving both to the codebook's mean, where the difference loses least to rounding.
    Where codes lie so far from their mean that rounding could still show beside the distance, as with two clusters far
    apart, it is taken in float64.
    """
    if z.shape[1] != codebook.shape[1]:
        raise ValueError(f"latents have {z.shape[1]} channels but codes have {codebook.shape[1]}")
    with torch.autocast(z.device.type, enabled=False):
        origin = codebook.float().mean(0)
        codes = codebook.float() - origin
        half_squares = codes.square().sum(1) / 2
        indices = torch.empty(len(z), dtype=torch.int64, device=z.device)
        blurred = torch.empty(len(z), dtype=torch.bool, device=z.device)
        block = max(1, MAX_DISTANCES // len(codes))
        for start in range(0, len(z), block):
            rows = slice(start, start + block)
            part = z[rows].float() - origin
            nearest = torch.addmm(half_squares, part, codes.T, alpha=-1).argmin(1)
            squared = (part - codes[nearest]).square().sum(1)
            rounding = 2**-23 * (part.square().sum(1) + half_squares[nearest])
            blurred[rows] = (rounding > MAX_ROUNDING * squared) & (squared > 0)
            indices[rows] = nearest
        exact = codes.double()
        for again in blurred.nonzero().flatten().split(block):  # the only place where the CPU waits for a GPU
            part = (z[again].float() - origin).double()
            indices[again] = torch.addmm(exact.square().sum(1) / 2, part, exact.T, alpha=-1).argmin(1)
    return indices


@dataclass(frozen=True)
class CodebookStatistics:
    """How a set of tokens uses the codebook."""

    num_tokens: int
    usage: float  # share of the codes that occur at all
    perplexity: float  # exp of the entropy of code frequencies: codebook size when all are equally frequent
    entropy_bits: float  # what a token is worth to an ideal compressor
    top_share: float  # share of the tokens taken by the most frequent code


def codebook_statistics(counts: Int[Tensor, " codebook_size"]) -> CodebookStatistics:
    """From how often each code occurs. Raises ValueError where there are no tokens."""
    num_tokens = int(counts.sum())
    if num_tokens == 0:
        raise ValueError("no tokens were counted; codebook usage is undefined")
    frequency = counts.double() / num_tokens
    entropy = -torch.special.xlogy(frequency, frequency).sum()
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
    return usage_of_counts(total(counts.scatter_add_(0, indices, torch.ones_like(indices, dtype=counts.dtype))))


def usage_of_counts(counts: Num[Tensor, " codebook_size"]) -> tuple[Tensor, Tensor]:
    """Usage and perplexity, from how often each code occurs."""
    frequency = counts.float() / counts.sum()
    entropy = -torch.special.xlogy(frequency, frequency).sum()
    return (frequency > 0).float().mean(), entropy.exp()


def gaussian_error_bound(vectors: Float[Tensor, "num_vectors dim"], *, bits: float) -> float:
    """Share of the variance that any code of so many bits a vector loses on a Gaussian of the same covariance.

    Reverse water-filling (Cover and Thomas 2006, theorem 10.3.3). Latents are no Gaussian and can fall below it; an
    error far above it says that the codebook is the limit, one near it that the bits are.
    """
    variances = torch.linalg.eigvalsh(torch.cov(vectors.double().T)).clamp(min=0)
    return float(variances.clamp(max=water_level(variances, bits=bits)).sum() / variances.sum())


def water_level(variances: Float[Tensor, " dim"], *, bits: float) -> float:
    """What a Gaussian of these variances loses in each direction that is wider, at this rate (theorem 10.3.3 again)."""
    low, high = variances.new_zeros(()), variances.max()
    for _ in range(100):  # by bisection
        level = (low + high) / 2
        rate = (variances.clamp(min=level) / level).log2().sum() / 2
        low, high = (level, high) if rate > bits else (low, level)
    return float(high)
