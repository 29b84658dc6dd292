"""Measure on the test split what the grid, the VAE, stage 1 and stage 2 each lose, and show it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa

from model.device import pick_device
from model.errors import InputError
from model.files import whole_directory, write_whole
from model.report import (
    CODEBOOK_TITLES,
    COSTS,
    PER_SHAPE,
    PICTURED,
    ROW_TITLES,
    Gallery,
    Ranking,
    Report,
    SheetRow,
    draw_history,
    draw_shapes,
    draw_usage,
    read_history,
    report_page,
    usage_table,
)
from model.tables import write_table
from tasks.evaluation import (
    Reconstructor,
    aggregate,
    aggregates_table,
    counts_of_levels,
    measure_shapes,
    rank,
    spread,
    summarise_codes,
    summarise_pairs,
    summarise_rows,
    write_per_shape,
)
from tasks.run import (
    CODEBOOK_PLOTS,
    EVALUATION,
    HEADLINE,
    METRICS,
    PLOTS,
    SDF,
    TIMINGS,
    Evaluate,
    Settings,
    run_stage,
    write_metrics,
)
from tasks.shards import Shards, open_shards

HEADLINE_ROWS = ("floor", "vae", "twin", "stage1", "stage2")
HEADLINE_FIGURES = {
    "cd_l1": "cd_l1",
    "surface_iou": "s_iou",
    "volume_iou": "v_iou",
    "sign_errors": "sign_errors",
    "num_tokens": "tokens",
}


def evaluate(settings: Settings) -> None:
    params = settings.evaluate
    shards = open_shards(SDF)
    if not shards.names("test"):
        raise InputError(f"{SDF} has no test shape, expected at least 1; raise voxelize.test_share or add meshes")
    histories = {stage: read_history(METRICS / f"{stage}_history.tsv") for stage in ("stage1", "stage2")}
    reconstructor = Reconstructor.load(pick_device())

    with TemporaryDirectory() as scratch:
        gallery = Gallery(Path(scratch))
        table, costs = measure_shapes(shards, reconstructor, params, gallery)
        aggregates = aggregate(table, seed=params.seed)
        metrics: dict[str, Any] = summarise_rows(table, aggregates) | {
            "codebook": summarise_codes(reconstructor.use),
            "paired": summarise_pairs(table, seed=params.seed),
        }
        counts = {name: of_level.numpy() for name, of_level in counts_of_levels(reconstructor.use).items()}
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
            write_table(
                directory / "aggregates.parquet",
                pa.Table.from_pandas(aggregates_table(aggregates), preserve_index=False),
            )
            write_whole(directory / "report.html", report_page(report))
    with whole_directory(PLOTS) as directory:
        for name, content in plots.items():
            write_whole(directory / name, content)
    write_metrics("evaluate", metrics)
    write_headline(metrics)
    write_costs(costs)
    print_outcome(metrics, costs)


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


def write_headline(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """What `dvc metrics show` prints: a file a row, few figures, narrow enough for a terminal."""
    with whole_directory(HEADLINE) as directory:
        for row in (row for row in HEADLINE_ROWS if row in metrics):
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
    rows = [row for row in ROW_TITLES if row in metrics]
    distances = ", ".join(f"{row} {metrics[row]['cd_l1']:.5f}" for row in rows)
    failures = sum(metrics[row]["failures"] for row in rows)
    print(f"mean CD-L1 over {metrics['stage2']['num_shapes']} test shapes: {distances}; failures: {failures}")
    for cost in COSTS:
        medians = costs.groupby("row")[cost.column].median()
        shown = ", ".join(f"{row} {cost.show(medians[row])}" for row in rows if not pd.isna(medians[row]))
        print(f"{cost.label}, median of a shape: {shown}")
    print(f"report: {EVALUATION / 'report.html'}")


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
