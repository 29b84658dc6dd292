"""All that an evaluation gives: a line per shape and row, means, paired differences, ranking; and its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ..files import write_whole
from ..report import PER_SHAPE, Evaluation
from ..tables import write_table
from .measuring import Measured, Sampling
from .reconstructions import CodeUse
from .tables import aggregate, aggregates_table, rank, summarise_codes, summarise_pairs, summarise_rows

REPORT = "report.html"


def summarise_all(measured: Measured, use: Mapping[str, CodeUse], sampling: Sampling, *, resolution: int) -> Evaluation:
    """What measure_shapes gave, summarised; and how codes were used by it."""
    table = measured.table
    aggregates = aggregate(table, seed=sampling.seed)
    metrics = summarise_rows(table, aggregates) | {
        "codebook": summarise_codes(use),
        "paired": summarise_pairs(table, seed=sampling.seed),
    }
    conditions = {"resolution": resolution, "num_points": sampling.num_points, "seed": sampling.seed}
    return Evaluation(table, pd.DataFrame(measured.costs), aggregates, rank(table), metrics, conditions)


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
