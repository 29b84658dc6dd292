"""Measure on the test split what the grid, the VAE, stage 1 and stage 2 each lose, and show it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from model.errors import InputError
from model.metrics import Mesh, TriangleMesh, Truth, compare_sdf, summarise
from tasks.device import pick_device
from tasks.paths import EVALUATION, METRICS, PLOTS, SDF
from tasks.plots import ShapePictures, draw_history, draw_shapes, draw_usage, read_history, usage_table
from tasks.progress import track
from tasks.reconstructions import CodeUse, Reconstruction, Reconstructor
from tasks.report import TIMES, Report, write_report
from tasks.settings import Evaluate, Settings
from tasks.shards import Shards, open_shards
from tasks.stage import run_stage, whole_directory, write_whole

ROWS = ("reference", "floor", "vae", "stage1", "stage2")  # reference: the truth against a second sample of itself
PICTURED = ("truth", "vae", "stage1", "stage2")
RANKED_BY = "cd_l1"  # of stage 2
# Columns whose means are metrics, by how they begin. Times differ from run to run; the rest is detail of the table.
SUMMARISED = (
    *("cd_", "fscore_", "normal_consistency", "spurious_area", "volume_iou", "surface_iou"),
    *("sdf_l1", "sign_errors", "num_tokens", "bits"),
)
NO_FIELD = {"sdf_l1": None, "sign_errors": None, "band_precision": None, "band_recall": None}


def evaluate(settings: Settings) -> None:
    params = settings.evaluate
    shards = open_shards(SDF)
    if not shards.names("test"):
        raise InputError(f"{SDF} has no test shape, expected at least 1; raise voxelize.test_share or add meshes")
    histories = {stage: read_history(METRICS / f"{stage}_history.tsv") for stage in ("stage1", "stage2")}
    reconstructor = Reconstructor.load(pick_device())

    with TemporaryDirectory() as scratch:
        table = measure(shards, reconstructor, params, Path(scratch))
        sheet = draw_shapes(pictures_of(table, params.picture_shapes, Path(scratch)))
    metrics = summarise_rows(table, seed=params.seed) | {"codebook": summarise_codes(reconstructor.use)}
    counts = {stage: use.counts.numpy() for stage, use in reconstructor.use.items()}
    plots = {
        "shapes.png": sheet,
        "loss_curves.png": draw_history(histories),
        "usage_histogram.png": draw_usage(counts),
        "usage_histogram.tsv": usage_table(counts).encode(),
    }
    with whole_directory(EVALUATION) as directory:
        table.to_parquet(directory / "per_shape.parquet", compression="zstd", index=False)
        report = Report(table, metrics, plots, resolution=shards.resolution, num_points=params.num_points)
        write_report(directory / "report.html", report)
    for name, content in plots.items():
        write_whole(PLOTS / name, content)
    write_whole(METRICS / "evaluate.json", json.dumps(metrics, indent=2) + "\n")
    print_outcome(metrics)


def measure(shards: Shards, reconstructor: Reconstructor, params: Evaluate, scratch: Path) -> pd.DataFrame:
    """One line per test shape and row, with every figure. The meshes of shape i go to scratch/i.npz."""
    lines: list[dict[str, Any]] = []
    names = shards.names("test")
    for number, name in enumerate(track(names, len(names), description="evaluate", unit="shape")):
        shape, surface = shards.read(name), shards.read_surface(name)
        truth = Truth(surface, num_points=params.num_points, seed=params.seed)
        results = chain([Reconstruction("reference", surface)], reconstructor.rows(shape))
        meshes: dict[str, Mesh] = {"truth": surface}
        for result in results:
            geometry = truth.compare(
                result.mesh,
                thresholds=params.fscore_thresholds,
                voxel_size=2 / shards.resolution,
                with_iou=result.row != "reference",
            )
            field = NO_FIELD
            if result.coords is not None and result.sdf is not None:
                field = asdict(compare_sdf(result.coords, result.sdf, shape.coords, shape.sdf))
            costs = {key: getattr(result, key) for key in ("num_tokens", "bits", *TIMES)}
            lines.append({"shape": name, "row": result.row} | geometry.as_row() | field | costs)
            meshes[result.row] = result.mesh
        save_meshes(scratch / f"{number}.npz", {row: meshes[row] for row in PICTURED})
    table = pd.DataFrame(lines)
    numbers = table.columns.difference(["shape", "row", "failed"])
    return table.astype(dict.fromkeys(numbers, "float64") | {"num_tokens": "Int64"})


def summarise_rows(table: pd.DataFrame, *, seed: int) -> dict[str, dict[str, float | int]]:
    """The metrics file: for each row the means over all test shapes, and more about the figure it is ranked by.

    A failed shape counts with the worst value of every figure. Where only some shapes have a figure (IoU needs closed
    surfaces), the mean is theirs, and num_closed says how many they are; a figure that no shape has is left out.
    """
    means = [column for column in table.columns if column.startswith(SUMMARISED)]
    summaries: dict[str, dict[str, float | int]] = {}
    for row in ROWS:
        lines = table[table.row == row]
        figures: dict[str, float | int] = {}
        for column in means:
            summary = summarise([None if pd.isna(v) else float(v) for v in lines[column]], seed=seed)
            if summary is None:
                continue
            figures[column] = rounded(summary.mean)
            if column == RANKED_BY:
                for part in ("median", "p95", "ci_low", "ci_high"):
                    figures[f"{column}_{part}"] = rounded(getattr(summary, part))
        figures["num_closed"] = int(lines.volume_iou.notna().sum())
        figures["failures"] = int(lines.failed.sum())
        figures["num_shapes"] = len(lines)
        summaries[row] = figures
    return summaries


def summarise_codes(use: Mapping[str, CodeUse]) -> dict[str, dict[str, float | int]]:
    """Codebook figures over all tokens of the test split."""
    figures = {}
    for stage, codes in use.items():
        statistics = asdict(codes.statistics()) | {
            "codebook_size": len(codes.codebook),
            "normalised_error": codes.normalised_error,
        }
        figures[stage] = {key: rounded(value) for key, value in statistics.items()}
    return figures


def pictures_of(table: pd.DataFrame, num_shapes: int, scratch: Path) -> Iterator[ShapePictures]:
    """Test shapes spread evenly from the best to the worst of stage 2, both included."""
    errors = table.pivot(index="shape", columns="row", values=RANKED_BY)
    numbers = {name: number for number, name in enumerate(table["shape"].unique())}
    ranked = errors["stage2"].sort_values(kind="stable").index
    chosen = np.unique(np.linspace(0, len(ranked) - 1, min(num_shapes, len(ranked))).round().astype(int))
    for rank in chosen:
        name = ranked[rank]
        distances = " / ".join(f"{errors.loc[name, row]:.4f}" for row in PICTURED[1:])
        label = f"{rank + 1} of {len(ranked)}: {name}   CD-L1 {distances}"
        yield ShapePictures(label, load_meshes(scratch / f"{numbers[name]}.npz"))


def save_meshes(path: Path, meshes: Mapping[str, Mesh]) -> None:
    arrays: dict[str, Any] = {}
    for row, mesh in meshes.items():
        arrays |= {f"{row}_vertices": np.asarray(mesh.vertices, np.float32), f"{row}_faces": np.asarray(mesh.faces)}
    np.savez(path, **arrays)


def load_meshes(path: Path) -> list[TriangleMesh]:
    """In the order of PICTURED."""
    with np.load(path) as arrays:
        return [TriangleMesh(arrays[f"{row}_vertices"], arrays[f"{row}_faces"]) for row in PICTURED]


def rounded(value: float | int) -> float | int:
    """Six digits: what a diff of two runs can use. Integers stay as they are."""
    return value if isinstance(value, int) else float(f"{value:.6g}")


def print_outcome(metrics: Mapping[str, Mapping[str, Any]]) -> None:
    distances = ", ".join(f"{row} {metrics[row]['cd_l1']:.5f}" for row in ROWS)
    failures = sum(metrics[row]["failures"] for row in ROWS)
    print(f"mean CD-L1 over {metrics['stage2']['num_shapes']} test shapes: {distances}; failures: {failures}")
    print(f"report: {EVALUATION / 'report.html'}")


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
