"""A codebook's figures held against their thresholds, what to do where one falls short, and the verdict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from model.device import pick_device
from model.quantizer import Lloyd, codebook_statistics, lloyd_pass
from tasks.run import CodebookThresholds, RefusedError


@dataclass(frozen=True)
class Check:
    """One figure held against its threshold."""

    figure: str
    value: float
    threshold: float
    parameter: str
    at_least: bool
    remedy: str

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold if self.at_least else self.value <= self.threshold

    def __str__(self) -> str:
        relation = ">=" if self.at_least else "<="
        return f"{self.figure} {self.value:.4g} ({self.parameter}: {relation} {self.threshold:.4g})"


@dataclass(frozen=True)
class Remedies:
    """What to do about a codebook; it depends on what made it."""

    unused: str
    one_takes_all: str
    no_carry_over: str
    duplicates: str


def verdict(checks: Sequence[Check]) -> dict[str, float]:
    """For a metrics file."""
    return {check.figure: check.value for check in checks} | {"passed": all(check.passed for check in checks)}


def refuse_failed(checks: Sequence[Check], what: str) -> None:
    """Print every check; raise RefusedError with figure, threshold and remedy of those that failed."""
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check}")
    failed = [check for check in checks if not check.passed]
    if failed:
        raise RefusedError(f"{what} is not good enough: " + "; ".join(f"{c}: {c.remedy}" for c in failed))


def lloyd_passes(codebooks: Sequence[Float[Tensor, "_ dim"]], vectors: Float[Tensor, "num_vectors dim"]) -> list[Lloyd]:
    """Of each level, over what the levels before it leave; on the GPU where there is one, the results on the CPU."""
    device = pick_device()
    passes: list[Lloyd] = []
    for codes in codebooks:
        passes.append(Lloyd(*(part.cpu() for part in lloyd_pass(vectors.to(device), codes.to(device)))))
        vectors = vectors - codes[passes[-1].indices]
    return passes


def judge(
    params: CodebookThresholds,
    section: str,
    codebooks: Sequence[Float[Tensor, "_ dim"]],
    remedies: Remedies,
    *,
    seen: Sequence[Lloyd],
    heldout: Sequence[Lloyd],
) -> list[Check]:
    """Every figure of each level beside its threshold; a further level's are named level2_usage and so on.

    seen and heldout are the lloyd_passes of training and of validation shapes' latents.
    """
    checks: list[Check] = []

    def check(figure: str, value: float, parameter: str, remedy: str) -> None:
        threshold, at_least = getattr(params, parameter), parameter.startswith("min_")
        checks.append(Check(prefix + figure, value, threshold, f"{section}.{parameter}", at_least, remedy))

    for level, (codes, of_seen, of_heldout) in enumerate(zip(codebooks, seen, heldout, strict=True), start=1):
        prefix = "" if level == 1 else f"level{level}_"
        size, use = len(codes), codebook_statistics(of_heldout.counts)
        more_tokens = (
            f"too few held-out tokens to judge by (of codes in even use, {1 - math.exp(-use.num_tokens / size):.1%} "
            "would occur); raise encode.heldout_symmetries or voxelize.val_share"
        )
        error_ratio = float(of_heldout.squared_errors.mean() / of_seen.squared_errors.mean())
        num_duplicates = size - len(codes.unique(dim=0))
        check("tokens_per_code", use.num_tokens / size, "min_tokens_per_code", more_tokens)
        check("usage", use.usage, "min_usage", remedies.unused)
        check("perplexity_ratio", use.perplexity / size, "min_perplexity_ratio", remedies.unused)
        check("top_share", use.top_share, "max_top_share", remedies.one_takes_all)
        check("error_ratio", error_ratio, "max_error_ratio", remedies.no_carry_over)
        duplicates = Check(prefix + "duplicate_codes", num_duplicates, 0, "never allowed", False, remedies.duplicates)
        checks.append(duplicates)
    return checks
