"""The codebook: nearest codes, the straight-through quantizer, k-means, training of codes, statistics of their use.

Vectors in, integers and figures out; knows no voxels and no network.
"""

from .lloyd import Lloyd, distinct_vectors, kmeans, lloyd_pass
from .quantizer import (
    CodebookStatistics,
    Quantized,
    VectorQuantizer,
    codebook_statistics,
    gaussian_error_bound,
    nearest_codes,
    usage_of_batch,
    usage_of_counts,
    water_level,
)
from .training import TrainedCodebook

__all__ = [
    "CodebookStatistics",
    "Lloyd",
    "Quantized",
    "TrainedCodebook",
    "VectorQuantizer",
    "codebook_statistics",
    "distinct_vectors",
    "gaussian_error_bound",
    "kmeans",
    "lloyd_pass",
    "nearest_codes",
    "usage_of_batch",
    "usage_of_counts",
    "water_level",
]
