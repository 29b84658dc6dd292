"""Every test shape through every row, compared with its true mesh: a line of figures each, and what it cost."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pandas as pd

from model.metrics import Truth, compare_sdf
from model.progress import track
from model.report import COSTS, Gallery
from model.sdf import SparseSDF
from tasks.evaluation.reconstructions import Reconstruction, Reconstructor
from tasks.run import Evaluate
from tasks.shards import Shards

NO_FIELD = {"sdf_l1": None, "sign_errors": None, "band_precision": None, "band_recall": None}
IOUS = ("volume_iou", "surface_iou")  # over closed truths
OPEN_IOUS = {name: f"open_{name}" for name in IOUS}  # over open truths that became solids


def measure_shapes(
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
            geometries = compare_all(truth, shape, results, params, threads)
            for result, geometry in zip(results, geometries, strict=True):
                key = {"shape": name, "row": result.row}
                field = compare_fields(result, shape)
                lines.append(key | geometry | field | {"num_tokens": result.num_tokens, "bits": result.bits})
                costs.append(key | {cost.column: getattr(result, cost.column) for cost in COSTS})
            gallery.add(name, {"truth": surface} | {result.row: result.mesh for result in results})
    table = pd.DataFrame(lines)
    numbers = table.columns.difference(["shape", "row", "failed"])
    return table.astype(dict.fromkeys(numbers, "float64") | {"num_tokens": "Int64"}), pd.DataFrame(costs)


def compare_all(
    truth: Truth, shape: SparseSDF, results: Sequence[Reconstruction], params: Evaluate, threads: ThreadPoolExecutor
) -> Iterator[dict[str, Any]]:
    """The geometry of each result as a line of the table, in order.

    What a closed truth holds is known, and so it is of an open one that the winding number made a solid of; their IoUs
    are figures of their own. A shell has none.
    """
    has_inside = truth.mesh.is_closed or shape.mode == "solid"
    if has_inside:
        truth.solid  # noqa: B018 - made here once, or every thread would begin with it

    def compare(result: Reconstruction) -> dict[str, Any]:
        line = truth.compare(
            result.mesh,
            thresholds=params.fscore_thresholds,
            voxel_size=2 / shape.resolution,
            field=result.field,
            with_iou=has_inside and result.field is not None,
        ).as_row()
        ious = {name: line.pop(name) for name in IOUS}
        closed = truth.mesh.is_closed
        return (
            line
            | {name: iou if closed else None for name, iou in ious.items()}
            | {OPEN_IOUS[name]: None if closed else iou for name, iou in ious.items()}
        )

    return threads.map(compare, results)


def compare_fields(result: Reconstruction, shape: SparseSDF) -> dict[str, float | None]:
    """The errors of a decoded field on the stored band; nothing for rows that no network decoded."""
    if result.field is None or result.row == "floor":
        return dict(NO_FIELD)
    return asdict(compare_sdf(result.field.coords, result.field.sdf, shape.coords, shape.sdf))
