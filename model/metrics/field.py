"""How far a decoded distance field is from the stored one, voxel by voxel."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

BAND_EDGE = 0.9  # voxel sets are those nearer than this: a network's far voxels lie around 1, on either side of it


@dataclass(frozen=True)
class SdfMetrics:
    """A decoded field against the stored one. Values are in units of the truncation, so in [-1, 1]."""

    sdf_l1: float  # mean |difference| over the true band voxels that the prediction holds
    sign_errors: float  # share of them on the wrong side
    band_precision: float  # share of the voxels predicted near the surface (|value| < 0.9) that truly are
    band_recall: float  # share of the voxels truly near the surface that are predicted so


def compare_sdf(
    coords: Int[np.ndarray, "num_predicted 3"],
    sdf: Float[np.ndarray, " num_predicted"],
    true_coords: Int[np.ndarray, "num_band 3"],
    true_sdf: Float[np.ndarray, " num_band"],
) -> SdfMetrics:
    """Errors of predicted voxels against the true band, whose voxels all have |value| < 1. Coordinates are unique.

    Raises ValueError where the two have no voxel in common.
    """
    extent = int(max(coords.max(), true_coords.max())) + 1
    shape = (extent,) * 3
    keys = np.ravel_multi_index(tuple(coords.T), shape)
    true_keys = np.ravel_multi_index(tuple(true_coords.T), shape)
    _, row, true_row = np.intersect1d(keys, true_keys, assume_unique=True, return_indices=True)
    if len(row) == 0:
        raise ValueError(f"none of {len(keys)} predicted voxels is among the {len(true_keys)} voxels of the true band")
    near, truly_near = np.abs(sdf) < BAND_EDGE, np.abs(true_sdf) < BAND_EDGE
    num_common = int((near[row] & truly_near[true_row]).sum())
    return SdfMetrics(
        sdf_l1=float(np.abs(sdf[row] - true_sdf[true_row]).mean(dtype=np.float64)),
        sign_errors=float(((sdf[row] < 0) != (true_sdf[true_row] < 0)).mean()),
        band_precision=num_common / max(int(near.sum()), 1),
        band_recall=num_common / max(int(truly_near.sum()), 1),
    )
