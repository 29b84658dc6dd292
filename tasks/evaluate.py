"""Measure on the test split what the grid, the VAE, stage 1 and stage 2 each lose, and show it."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from model.device import pick_device
from model.errors import InputError
from model.files import whole_directory, write_whole
from model.metrics import Truth, compare_sdf, summarise
from model.progress import track
from model.report import (
    CODEBOOK_TITLES,
    COSTS,
    PER_SHAPE,
    PICTURED,
    ROW_TITLES,
    Aggregates,
    Gallery,
    Ranking,
    Report,
    SheetRow,
    draw_history,
    draw_shapes,
    draw_usage,
    read_history,
    usage_table,
    write_report,
)
from tasks.evaluation import CodeUse, Reconstruction, Reconstructor
from tasks.run import CODEBOOK_PLOTS, EVALUATION, HEADLINE, METRICS, PLOTS, SDF, TIMINGS, Evaluate, Settings, run_stage
from tasks.shards import Shards, open_shards, write_table

ROWS = tuple(ROW_TITLES)
RANKED_BY = "cd_l1"  # of stage 2
# Columns whose means are metrics, by how they begin. The rest is detail of the tables.
SUMMARISED = (
    *("cd_", "fscore_", "normal_consistency", "spurious_area", "volume_iou", "surface_iou"),
    *("sdf_l1", "sign_errors", "band_", "num_tokens", "bits"),
)
HEADLINE_ROWS = ("floor", "vae", "stage1", "stage2")
HEADLINE_FIGURES = {
    "cd_l1": "cd_l1",
    "surface_iou": "s_iou",
    "volume_iou": "v_iou",
    "sign_errors": "sign_errors",
    "num_tokens": "tokens",
}
IOUS = {"volume_iou", "surface_iou"}
NO_FIELD = {"sdf_l1": None, "sign_errors": None, "band_precision": None, "band_recall": None}


def evaluate(settings: Settings) -> None:
    params = settings.evaluate
    shards = open_shards(SDF)
    if not shards.names("test"):
        raise InputError(f"{SDF} has no test shape, expected at least 1; raise voxelize.test_share or add meshes")
    histories = {stage: read_history(METRICS / f"{stage}_history.tsv") for stage in ("stage1", "stage2")}
    reconstructor = Reconstructor.load(pick_device())

    with TemporaryDirectory() as scratch:
        gallery = Gallery(Path(scratch))
        table, costs = measure(shards, reconstructor, params, gallery)
        aggregates = aggregate(table, seed=params.seed)
        metrics = summarise_rows(table, aggregates) | {"codebook": summarise_codes(reconstructor.use)}
        counts = {stage: use.counts.numpy() for stage, use in reconstructor.use.items()}
        ranking = rank(table)
        plots = {
            "shapes.png": draw_shapes(list(sheet_rows(ranking, spread(ranking, params.picture_shapes), gallery))),
            "loss_curves.png": draw_history(histories),
            "usage_histogram.png": draw_usage(counts),
            "usage_histogram.tsv": usage_table(counts).encode(),
        }
        report = Report(
            table=table,
            aggregates=aggregates,
            ranking=ranking,
            metrics=metrics,
            histories=histories,
            codebook_plots={"usage_histogram.png": plots["usage_histogram.png"]} | codebook_pictures(),
            gallery=gallery,
            sheet=spread(ranking, params.report_shapes),
            scenes=spread(ranking, params.report_views),
            conditions=conditions(shards, params),
        )
        with whole_directory(EVALUATION) as directory:
            write_per_shape(directory / PER_SHAPE, table, report.conditions)
            aggregates_table(aggregates).to_parquet(directory / "aggregates.parquet", compression="zstd", index=False)
            write_report(directory / "report.html", report)
    with whole_directory(PLOTS) as directory:
        for name, content in plots.items():
            write_whole(directory / name, content)
    write_whole(METRICS / "evaluate.json", json.dumps(metrics, indent=2) + "\n")
    write_headline(metrics)
    write_costs(costs)
    print_outcome(metrics, costs)


def measure(
    shards: Shards, reconstructor: Reconstructor, params: Evaluate, gallery: Gallery
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One line per test shape and row with every figure, and another table with what it cost. Meshes go to the gallery.

    The network runs alone, so that its times and memory are its own; the rows are then compared side by side.
    """
    lines: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    names = shards.names("test")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for name in track(names, len(names), description="evaluate", unit="shape"):
            shape, surface = shards.read(name), shards.read_surface(name)
            results = [Reconstruction("reference", surface), *reconstructor.rows(shape)]
            truth = Truth(surface, num_points=params.num_points, seed=params.seed)
            geometries = compare_all(truth, results, params, voxel_size=2 / shards.resolution, threads=threads)
            for result, geometry in zip(results, geometries, strict=True):
                field = NO_FIELD
                if result.coords is not None and result.sdf is not None:
                    field = asdict(compare_sdf(result.coords, result.sdf, shape.coords, shape.sdf))
                key = {"shape": name, "row": result.row}
                lines.append(key | geometry | field | {"num_tokens": result.num_tokens, "bits": result.bits})
                costs.append(key | {cost.column: getattr(result, cost.column) for cost in COSTS})
            gallery.add(name, {"truth": surface} | {result.row: result.mesh for result in results})
    table = pd.DataFrame(lines)
    numbers = table.columns.difference(["shape", "row", "failed"])
    return table.astype(dict.fromkeys(numbers, "float64") | {"num_tokens": "Int64"}), pd.DataFrame(costs)


def compare_all(
    truth: Truth, results: Sequence[Reconstruction], params: Evaluate, *, voxel_size: float, threads: ThreadPoolExecutor
) -> Iterator[dict[str, Any]]:
    """The geometry of each result as a line of the table, in order."""

    def compare(result: Reconstruction) -> dict[str, Any]:
        return truth.compare(
            result.mesh,
            thresholds=params.fscore_thresholds,
            voxel_size=voxel_size,
            with_iou=result.row != "reference",
        ).as_row()

    return threads.map(compare, results)


def aggregate(table: pd.DataFrame, *, seed: int) -> Aggregates:
    """Every figure of every row over all shapes; a failed shape counts with the worst value of each.

    A figure that no shape has is left out. An IoU, which needs closed surfaces, is taken over the shapes where every
    row has it, so that rows differ by what they lose and not by their shapes.
    """
    table = table.assign(**{column: table[column].where(closed_in_all_rows(table)) for column in IOUS & {*table}})
    columns = table.columns.difference(["shape", "row", "failed"], sort=False)
    aggregates: Aggregates = {}
    for row in ROWS:
        lines = table[table.row == row]
        summaries = {c: summarise([None if pd.isna(v) else float(v) for v in lines[c]], seed=seed) for c in columns}
        aggregates[row] = {column: summary for column, summary in summaries.items() if summary is not None}
    return aggregates


def closed_in_all_rows(table: pd.DataFrame) -> pd.Series:
    """Of each line, whether the volume IoU of its shape is known in every row that has a prediction."""
    known = table.volume_iou.notna() | (table.row == "reference")
    return known.groupby(table["shape"]).transform("all")


def aggregates_table(aggregates: Aggregates) -> pd.DataFrame:
    """A line per row and figure."""
    return pd.DataFrame(
        [
            {"row": row, "figure": figure, **summary._asdict()}
            for row, summaries in aggregates.items()
            for figure, summary in summaries.items()
        ]
    )


def summarise_rows(table: pd.DataFrame, aggregates: Aggregates) -> dict[str, dict[str, float | int]]:
    """The metrics file: for each row the means over all test shapes, and more about the figure it is ranked by.

    num_closed says how many shapes an IoU is the mean of: those with closed surfaces in all rows.
    """
    metrics: dict[str, dict[str, float | int]] = {}
    for row, summaries in aggregates.items():
        figures: dict[str, float | int] = {}
        for column, summary in summaries.items():
            if not column.startswith(SUMMARISED):
                continue
            figures[column] = rounded(summary.mean)
            if column == RANKED_BY:
                for part in ("median", "p95", "ci_low", "ci_high"):
                    figures[f"{column}_{part}"] = rounded(getattr(summary, part))
        lines = table[table.row == row]
        figures["num_closed"] = summaries["volume_iou"].num_shapes if "volume_iou" in summaries else 0
        figures["failures"] = int(lines.failed.sum())
        figures["num_shapes"] = len(lines)
        metrics[row] = figures
    return metrics


def summarise_codes(use: Mapping[str, CodeUse]) -> dict[str, dict[str, float | int]]:
    """Codebook figures over all tokens of the test split."""
    figures = {}
    for stage, codes in use.items():
        statistics = asdict(codes.statistics()) | {
            "codebook_size": codes.size,
            "normalised_error": codes.normalised_error,
        }
        figures[stage] = {key: rounded(value) for key, value in statistics.items()}
    return figures


def rank(table: pd.DataFrame) -> Ranking:
    """The best result of stage 2 first."""
    errors: Ranking = {}
    for shape, row, error in table[["shape", "row", RANKED_BY]].itertuples(index=False):
        errors.setdefault(shape, {})[row] = error
    return dict(sorted(errors.items(), key=lambda item: item[1]["stage2"]))


def spread(ranking: Ranking, count: int) -> list[str]:
    """At most `count` shapes, evenly from first to last, both included."""
    shapes = list(ranking)
    chosen = np.unique(np.linspace(0, len(shapes) - 1, min(count, len(shapes))).round().astype(int))
    return [shapes[i] for i in chosen]


def sheet_rows(ranking: Ranking, shapes: Sequence[str], gallery: Gallery) -> Iterator[SheetRow]:
    places = {shape: place for place, shape in enumerate(ranking, start=1)}
    for shape in shapes:
        distances = " / ".join(f"{ranking[shape][row]:.4f}" for row in PICTURED if row != "truth")
        label = f"{places[shape]} of {len(ranking)}: {shape}   CD-L1 {distances}"
        yield SheetRow(label, gallery.pictures(shape))


def codebook_pictures() -> dict[str, bytes]:
    """What the gate drew of the codebook."""
    drawn = [CODEBOOK_PLOTS / name for name in CODEBOOK_TITLES if name.startswith("codebook_")]
    return {path.name: path.read_bytes() for path in drawn if path.is_file()}


def conditions(shards: Shards, params: Evaluate) -> dict[str, int]:
    """What figures depend on besides the shapes, as model.report.compare wants it."""
    return {"resolution": shards.resolution, "num_points": params.num_points, "seed": params.seed}


def write_per_shape(path: Path, table: pd.DataFrame, measured: Mapping[str, int]) -> None:
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    described = {key: str(value) for key, value in measured.items()}
    write_table(path, arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **described}))


def rounded(value: float | int) -> float | int:
    """Six digits: what a diff of two runs can use. Integers stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def write_headline(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """What `dvc metrics show` prints: a file a row, few figures, narrow enough for a terminal."""
    with whole_directory(HEADLINE) as directory:
        for row in HEADLINE_ROWS:
            figures = {short: metrics[row][name] for name, short in HEADLINE_FIGURES.items() if name in metrics[row]}
            codes = metrics["codebook"].get(row)
            if codes is not None:
                figures |= {"usage": codes["usage"], "perplexity": codes["perplexity"]}
            shown = {name: float(f"{value:.4g}") for name, value in figures.items()}
            write_whole(directory / f"{row}.json", json.dumps(shown, indent=2) + "\n")


def write_costs(costs: pd.DataFrame) -> None:
    """Apart from the evaluation, whose bytes must not depend on the clock."""
    write_table(TIMINGS / "evaluate.parquet", pa.Table.from_pandas(costs, preserve_index=False))


def print_outcome(metrics: Mapping[str, Mapping[str, Any]], costs: pd.DataFrame) -> None:
    distances = ", ".join(f"{row} {metrics[row]['cd_l1']:.5f}" for row in ROWS)
    failures = sum(metrics[row]["failures"] for row in ROWS)
    print(f"mean CD-L1 over {metrics['stage2']['num_shapes']} test shapes: {distances}; failures: {failures}")
    for cost in COSTS:
        medians = costs.groupby("row")[cost.column].median()
        shown = ", ".join(f"{row} {cost.show(medians[row])}" for row in ROWS if not pd.isna(medians[row]))
        print(f"{cost.label}, median of a shape: {shown}")
    print(f"report: {EVALUATION / 'report.html'}")


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
