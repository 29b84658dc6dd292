"""What evaluate measures and how: a shape's way through everything that was trained, its figures, their tables."""

from tasks.evaluation.measuring import measure_shapes
from tasks.evaluation.reconstructions import CodeUse, Reconstruction, Reconstructor
from tasks.evaluation.tables import (
    aggregate,
    aggregates_table,
    counts_of_levels,
    rank,
    spread,
    summarise_codes,
    summarise_pairs,
    summarise_rows,
    write_per_shape,
)
