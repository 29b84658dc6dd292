"""k-means of latents: what stage 1 is, once the encoder is frozen."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.errors import InputError
from model.quantizer import nearest_codes

SEEDING_CANDIDATES_PER_CODE = 32  # k-means++ looks at a subsample of this size


class Lloyd(NamedTuple):
    """What one pass over all vectors gives."""

    counts: Int[Tensor, " codebook_size"]
    sums: Float[Tensor, "codebook_size dim"]
    squared_errors: Float[Tensor, " num_vectors"]
    indices: Int[Tensor, " num_vectors"]


def kmeans(
    vectors: Float[Tensor, "num_vectors dim"], size: int, *, iterations: int, generator: torch.Generator
) -> Float[Tensor, "size dim"]:
    """Codes by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd's iteration; empty codes move to the error.

    Exact repeats of a vector count once: a pattern that every shape has, such as a flat face, must not draw the codes
    to itself. Raises InputError where there are fewer distinct vectors than codes.
    """
    distinct = vectors.unique(dim=0)
    if len(distinct) < size:
        raise InputError(
            f"there are {len(distinct)} distinct latent vectors for {size} codes; "
            "set codebook.size lower, or encode more shapes or symmetries"
        )
    codes = _seed(distinct, size, generator)
    for _ in range(iterations):
        codes = _update(codes, distinct, lloyd_pass(distinct, codes), generator)
    return codes


def lloyd_pass(vectors: Float[Tensor, "num_vectors dim"], codes: Float[Tensor, "size dim"]) -> Lloyd:
    indices = nearest_codes(vectors, codes)
    sums = torch.zeros_like(codes).index_add_(0, indices, vectors)
    errors = (vectors - codes[indices]).square().sum(1)
    return Lloyd(torch.bincount(indices, minlength=len(codes)), sums, errors, indices)


def _update(codes: Tensor, vectors: Tensor, result: Lloyd, generator: torch.Generator) -> Tensor:
    """Codes to the means of their members; each empty one into a code of largest total squared error instead.

    There it takes the place of a member, drawn by the squared error.
    """
    used = result.counts > 0
    codes = codes.clone()
    codes[used] = result.sums[used] / result.counts[used, None]
    totals = torch.zeros(len(codes), device=codes.device).index_add_(0, result.indices, result.squared_errors)
    empty = (~used).nonzero().flatten().tolist()
    for code, crowded in zip(empty, totals.argsort(descending=True).tolist(), strict=False):
        members = (result.indices == crowded).nonzero().flatten()
        errors = result.squared_errors[members].cpu()
        if not errors.any():
            break  # every vector sits on its code: nothing left to split
        codes[code] = vectors[members[torch.multinomial(errors, 1, generator=generator).item()]]
    return codes


def _seed(distinct: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Each next code is one of the candidates, drawn by its squared distance to the codes so far."""
    keep = torch.randperm(len(distinct), generator=generator)[: size * SEEDING_CANDIDATES_PER_CODE]
    candidates = distinct[keep.to(distinct.device)]
    chosen = torch.empty(size, dtype=torch.int64)
    nearest = torch.full((len(candidates),), torch.inf, device=candidates.device)
    weights = torch.ones(len(candidates))
    for k in range(size):
        chosen[k] = torch.multinomial(weights, 1, generator=generator)
        nearest = torch.minimum(nearest, (candidates - candidates[chosen[k]]).square().sum(1))
        weights = nearest.cpu()
    return candidates[chosen.to(candidates.device)].clone()
