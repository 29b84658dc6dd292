"""The codebook: nearest codes, the straight-through quantizer, k-means, training of codes, statistics of their use.

Vectors in, integers and figures out; knows no voxels and no network.
"""

from .lloyd import Lloyd, distinct_vectors, kmeans, lloyd_pass
from .quantizer import Quantized, ResidualQuantizer, VectorQuantizer, nearest_codes
from .statistics import (
    CodebookStatistics,
    codebook_statistics,
    gaussian_error_bound,
    history_columns,
    normalised_error,
    spectrum,
    statistics_of_levels,
    water_level,
)
from .training import LAST_MOVE, TrainedCodebook

__all__ = [
    "LAST_MOVE",
    "CodebookStatistics",
    "Lloyd",
    "Quantized",
    "ResidualQuantizer",
    "TrainedCodebook",
    "VectorQuantizer",
    "codebook_statistics",
    "distinct_vectors",
    "gaussian_error_bound",
    "history_columns",
    "kmeans",
    "lloyd_pass",
    "nearest_codes",
    "normalised_error",
    "spectrum",
    "statistics_of_levels",
    "water_level",
]
