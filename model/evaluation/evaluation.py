"""All that an evaluation gives: a line per shape and row, means, paired differences, ranking; and its files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..files import write_whole
from ..report import PER_SHAPE, Aggregates, Gallery, Ranking
from ..tables import write_table
from .measuring import Sampling, TrueShape, measure_shapes
from .reconstructions import Reconstructor
from .tables import aggregate, aggregates_table, rank, summarise_codes, summarise_pairs, summarise_rows

REPORT = "report.html"


@dataclass(frozen=True)
class Evaluation:
    table: pd.DataFrame  # a line per shape and row with every figure
    costs: pd.DataFrame  # a line per shape and row: seconds and memory
    aggregates: Aggregates
    ranking: Ranking
    metrics: dict[str, Any]  # by row the means; `codebook` and `paired` beside them
    conditions: Mapping[str, int]  # what figures depend on besides the shapes, as model.report compares it


def evaluate_shapes(
    shapes: Iterable[TrueShape],
    total: int,
    reconstructor: Reconstructor,
    sampling: Sampling,
    gallery: Gallery,
    *,
    resolution: int,
) -> Evaluation:
    """Every shape, of which there are `total`, through every row. Their meshes go to the gallery."""
    table, costs = measure_shapes(shapes, total, reconstructor, sampling, gallery)
    aggregates = aggregate(table, seed=sampling.seed)
    metrics = summarise_rows(table, aggregates) | {
        "codebook": summarise_codes(reconstructor.use),
        "paired": summarise_pairs(table, seed=sampling.seed),
    }
    conditions = {"resolution": resolution, "num_points": sampling.num_points, "seed": sampling.seed}
    return Evaluation(table, costs, aggregates, rank(table), metrics, conditions)


def write_evaluation(directory: Path, evaluation: Evaluation, report: str) -> None:
    """The tables and the page."""
    write_per_shape(directory / PER_SHAPE, evaluation.table, evaluation.conditions)
    means = aggregates_table(evaluation.aggregates)
    write_table(directory / "aggregates.parquet", pa.Table.from_pandas(means, preserve_index=False))
    write_whole(directory / REPORT, report)


def write_per_shape(path: Path, table: pd.DataFrame, conditions: Mapping[str, int]) -> None:
    """The table with the conditions that its figures depend on, as `shape-tokenizer compare` reads it."""
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    described: dict[Any, Any] = {key: str(value) for key, value in conditions.items()}
    write_table(path, arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **described}))
