"""What trained networks lose of a shape: its way through each of them, figures, means, differences paired by shape.

evaluate and `shape-tokenizer evaluate` measure with it. Grids, surfaces and networks in, tables out; may import every
other room of model/ but cli. A figure that is added in measuring.py gets its name and meaning in model.report.
"""

from .measuring import Sampling, TrueShape, measure_shapes
from .reconstructions import CodeUse, Reconstructor
from .tables import REPORT, counts_of_levels, spread, summarise_all, write_evaluation

__all__ = [
    "REPORT",
    "CodeUse",
    "Reconstructor",
    "Sampling",
    "TrueShape",
    "counts_of_levels",
    "measure_shapes",
    "spread",
    "summarise_all",
    "write_evaluation",
]
