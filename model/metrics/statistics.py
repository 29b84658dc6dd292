"""One figure over many shapes, and how it changed: means with bootstrap intervals, differences paired by shape."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NUM_RESAMPLES = 2000
_BOOTSTRAP_STREAM = 4  # of random numbers; those of a comparison of surfaces are others


class Summary(NamedTuple):
    """One figure over many shapes."""

    mean: float
    median: float
    p95: float
    ci_low: float  # 95 % bootstrap interval of the mean over shapes
    ci_high: float
    num_shapes: int  # that have the figure


def summarise(values: Sequence[float | None], *, seed: int) -> Summary | None:
    """Mean, median, 95th percentile and percentile bootstrap interval; None where no shape has the figure.

    None among the values means that the figure does not exist for the shape (an open mesh has no volume); NaN raises.
    """
    present = np.array([v for v in values if v is not None], np.float64)
    if len(present) == 0:
        return None
    if not np.isfinite(present).all():
        raise ValueError(f"{int((~np.isfinite(present)).sum())} of {len(present)} values are not finite")
    rng = np.random.default_rng([seed, _BOOTSTRAP_STREAM])
    means = present[rng.integers(0, len(present), (NUM_RESAMPLES, len(present)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    median, p95 = np.percentile(present, [50, 95])
    return Summary(float(present.mean()), float(median), float(p95), float(low), float(high), len(present))


class Change(NamedTuple):
    """One figure of the same shapes in two runs, or two rows of one run."""

    old_mean: float
    new_mean: float
    mean: float  # of new - old, shape by shape
    ci_low: float  # 95 % bootstrap interval of that mean; does not hold 0 where the change is more than chance
    ci_high: float
    num_lower: int  # shapes whose figure fell
    num_higher: int
    num_shapes: int  # that have the figure in both


def summarise_change(old: Sequence[float | None], new: Sequence[float | None], *, seed: int) -> Change | None:
    """The paired difference: what shapes differ in by themselves drops out. None where no shape has both figures."""
    pairs = np.array([p for p in zip(old, new, strict=True) if None not in p], np.float64).reshape(-1, 2)
    difference = summarise(list(pairs[:, 1] - pairs[:, 0]), seed=seed)
    if difference is None:
        return None
    before, after = pairs.T
    return Change(
        old_mean=float(before.mean()),
        new_mean=float(after.mean()),
        mean=difference.mean,
        ci_low=difference.ci_low,
        ci_high=difference.ci_high,
        num_lower=int((after < before).sum()),
        num_higher=int((after > before).sum()),
        num_shapes=len(pairs),
    )
