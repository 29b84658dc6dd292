"""Every shape through every row, compared with its true mesh: a line of figures each, and what it cost."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from operator import itemgetter
from typing import Any, NamedTuple

import pandas as pd

from ..distributed import gather_lists, rank
from ..errors import InputError
from ..metrics import Truth, compare_sdf
from ..progress import track
from ..report import COSTS, Gallery
from ..sdf import SparseSDF, Surface
from .reconstructions import Reconstruction, Reconstructor

NO_FIELD = {"sdf_l1": None, "sign_errors": None, "band_precision": None, "band_recall": None}
IOUS = ("volume_iou", "surface_iou")  # over closed truths
OPEN_IOUS = {name: f"open_{name}" for name in IOUS}  # over open truths that became solids


class TrueShape(NamedTuple):
    name: str
    grid: SparseSDF
    surface: Surface  # the true one, in the [-1, 1] cube


class Sampling(NamedTuple):
    """How surfaces are compared; figures of two evaluations are comparable where it is the same."""

    num_points: int  # on each surface
    thresholds: Sequence[float]  # of the F-scores, in units of the [-1, 1] cube
    seed: int


class Measured(NamedTuple):
    """A line per shape and row with every figure, and another with what it cost."""

    lines: list[dict[str, Any]]
    costs: list[dict[str, Any]]

    @property
    def table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.lines)
        numbers = table.columns.difference(["shape", "row", "failed"])
        return table.astype(dict.fromkeys(numbers, "float64") | {"num_tokens": "Int64"})


def measure_shapes(
    shapes: Iterable[TrueShape],
    total: int,
    reconstructor: Reconstructor,
    sampling: Sampling,
    gallery: Gallery,
    *,
    reject: Callable[[str, Exception], None] | None = None,
) -> Measured:
    """Every shape, of which there are `total`, through every row. Meshes go to the gallery.

    Networks run alone, so that their times and memory are their own; the rows are then compared side by side. Lines are
    in the order of the shapes' names, whatever the order of the shapes. What goes wrong with one of them, such as too
    little memory for it, is given to `reject` with its name, or raised. Several
    ranks have shapes of their own: then all lines, meshes and codes are the first one's. Raises InputError where no
    shape is left.
    """
    lines: list[dict[str, Any]] = []
    costs: list[dict[str, Any]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for shape in track(shapes, total, description="evaluate", unit="shape"):
            try:
                results, of_shape = _measure(shape, reconstructor, sampling, threads)
            except Exception as error:
                if reject is None:
                    raise
                reject(shape.name, error)
                continue
            lines += of_shape
            costs += [
                {"shape": shape.name, "row": result.row} | {cost.column: getattr(result, cost.column) for cost in COSTS}
                for result in results
            ]
            reconstructor.count_codes(shape.name)
            gallery.add(shape.name, {"truth": shape.surface} | {result.row: result.mesh for result in results})
    gallery.gather()
    for use in reconstructor.use.values():
        use.gather()
    lines, costs = (sorted(gather_lists(own), key=itemgetter("shape")) for own in (lines, costs))
    if rank() == 0 and not lines:
        raise InputError(f"none of the {total} meshes could be used; expected at least one, see above")
    return Measured(lines, costs)


def _measure(
    shape: TrueShape, reconstructor: Reconstructor, sampling: Sampling, threads: ThreadPoolExecutor
) -> tuple[list[Reconstruction], list[dict[str, Any]]]:
    """The rows of a shape, and a line with the figures of each."""
    name, grid, surface = shape
    results = [Reconstruction("reference", surface), *reconstructor.rows(grid)]
    truth = Truth(surface, num_points=sampling.num_points, seed=sampling.seed)
    geometries = compare_all(truth, grid, results, sampling, threads)
    lines = [
        {"shape": name, "row": result.row}
        | geometry
        | compare_fields(result, grid)
        | {"num_tokens": result.num_tokens, "bits": result.bits}
        for result, geometry in zip(results, geometries, strict=True)
    ]
    return results, lines


def compare_all(
    truth: Truth, shape: SparseSDF, results: Sequence[Reconstruction], sampling: Sampling, threads: ThreadPoolExecutor
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
            thresholds=sampling.thresholds,
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
