"""From a line per shape and row to means, paired differences and the ranking; and the files of an evaluation."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from ..files import write_whole
from ..metrics import Summary, summarise
from ..quantizer import codebook_statistics
from ..report import PER_SHAPE, Aggregates, Evaluation, Ranking, compare_within, rows_of
from ..tables import write_table
from .measuring import Measured, Sampling
from .reconstructions import CodeUse

REPORT = "report.html"
RANKED_BY = "cd_l1"  # of stage 2
# Columns whose means are metrics, by how they begin. The rest is detail of the tables.
SUMMARISED = (
    *("cd_", "fscore_", "normal_consistency", "spurious_area", "volume_iou", "surface_iou", "open_"),
    *("sdf_l1", "sign_errors", "band_", "num_tokens", "bits"),
)


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
    write_table(directory / PER_SHAPE, evaluation.table, evaluation.conditions)  # as `shape-tokenizer compare` reads it
    means = [
        {"row": row, "figure": figure, **summary._asdict()}
        for row, summaries in evaluation.aggregates.items()
        for figure, summary in summaries.items()
    ]
    write_table(directory / "aggregates.parquet", pd.DataFrame(means))
    write_whole(directory / REPORT, report)


def aggregate(table: pd.DataFrame, *, seed: int) -> Aggregates:
    """Every figure of every row over all shapes that have it; a failed shape counts with the worst value of each.

    A figure that no shape has is left out. Which shapes have an IoU is for the truth alone to say, so it is the same
    ones in every row.
    """
    columns = table.columns.difference(["shape", "row", "failed"], sort=False)
    aggregates: Aggregates = {}
    for row in rows_of(table):
        lines = table[table.row == row]
        summaries = {c: summarise([None if pd.isna(v) else float(v) for v in lines[c]], seed=seed) for c in columns}
        aggregates[row] = {column: summary for column, summary in summaries.items() if summary is not None}
    return aggregates


def summarise_rows(table: pd.DataFrame, aggregates: Aggregates) -> dict[str, dict[str, float | int]]:
    """The metrics file: for each row the means over all test shapes, and more about the figure it is ranked by.

    num_closed and num_open say how many shapes an IoU is the mean of.
    """
    metrics: dict[str, dict[str, float | int]] = {}
    for row, summaries in aggregates.items():
        figures = {}
        for column, summary in summaries.items():
            if column.startswith(SUMMARISED):
                figures[column] = rounded(summary.mean)
            if column == RANKED_BY:
                for part in ("median", "p95", "ci_low", "ci_high"):
                    figures[f"{column}_{part}"] = rounded(getattr(summary, part))
        lines = table[table.row == row]
        counts = {
            "num_closed": num_shapes(summaries.get("volume_iou")),
            "num_open": num_shapes(summaries.get("open_volume_iou")),
            "failures": int(lines.failed.sum()),
            "num_shapes": len(lines),
        }
        metrics[row] = figures | counts
    return metrics


def num_shapes(summary: Summary | None) -> int:
    return 0 if summary is None else summary.num_shapes


def summarise_pairs(table: pd.DataFrame, *, seed: int) -> dict[str, dict[str, dict[str, float | int]]]:
    """What stage 2 changes, shape by shape: by the row it is held against and figure, the mean and its interval.

    The interval is a 95 % bootstrap over shapes of the per-shape difference.
    """
    return {
        f"stage2 - {row}": {
            figure.column: {key: rounded(getattr(change, key)) for key in ("mean", "ci_low", "ci_high", "num_shapes")}
            for figure, change in changes
            if figure.smaller_is_better is not None
        }
        for row, changes in compare_within(table, seed=seed).items()
    }


def summarise_codes(use: Mapping[str, CodeUse]) -> dict[str, dict[str, float | int]]:
    """Codebook figures over all tokens of the test split."""
    errors = {stage: codes.normalised_error for stage, codes in use.items()}
    figures = {}
    for name, counts in counts_of_levels(use).items():
        of_level = asdict(codebook_statistics(torch.from_numpy(counts))) | {
            "codebook_size": len(counts),
            "normalised_error": errors[name.partition("_level")[0]],
        }
        figures[name] = {key: rounded(value) for key, value in of_level.items()}
    return figures


def counts_of_levels(use: Mapping[str, CodeUse]) -> dict[str, Int[np.ndarray, " codebook_size"]]:
    """How often each code occurs, by stage; further levels of codes are stage1_level2 and so on."""
    return {
        stage if level == 1 else f"{stage}_level{level}": counts.numpy()
        for stage, codes in use.items()
        for level, counts in enumerate(codes.counts, start=1)
    }


def rank(table: pd.DataFrame) -> Ranking:
    """The best result of stage 2 first."""
    errors = table.pivot(index="shape", columns="row", values=RANKED_BY).sort_values("stage2", kind="stable")
    return {
        str(shape): {str(row): float(error) for row, error in of_rows.items()} for shape, of_rows in errors.iterrows()
    }


def spread(ranking: Ranking, count: int) -> list[str]:
    """At most `count` shapes, evenly from first to last, both included."""
    shapes = list(ranking)
    chosen = np.unique(np.linspace(0, len(shapes) - 1, min(count, len(shapes))).round().astype(int))
    return [shapes[i] for i in chosen]


def rounded(value: float | int) -> float | int:
    """Six digits: what a diff of two runs can use. Integers stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
