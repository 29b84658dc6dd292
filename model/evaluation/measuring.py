"""Every shape through every row, compared with its true mesh: a line of figures each, and what it cost."""

import os
from collections.abc import Callable, Iterable, Sequence
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

NO_FIELD: dict[str, float | None] = dict.fromkeys(("sdf_l1", "sign_errors", "band_precision", "band_recall"))
IOUS = ("volume_iou", "surface_iou")  # over closed truths; open_volume_iou and so on over open ones that became solids


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
                results = [Reconstruction("reference", shape.surface), *reconstructor.rows(shape.grid)]
                of_shape = _lines_of(shape, results, sampling, threads)
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


def _lines_of(
    shape: TrueShape, results: Sequence[Reconstruction], sampling: Sampling, threads: ThreadPoolExecutor
) -> list[dict[str, Any]]:
    """A line with the figures of each result, in order.

    What a closed truth holds is known, and so it is of an open one that the winding number made a solid of; their IoUs
    are figures of their own. A shell has none. The errors of a field are those on the stored band; rows that no network
    decoded have none.
    """
    name, grid, surface = shape
    truth = Truth(surface, num_points=sampling.num_points, seed=sampling.seed)
    closed = truth.mesh.is_closed
    has_inside = closed or grid.mode == "solid"
    if has_inside:
        truth.solid  # noqa: B018 - made here once, or every thread would begin with it

    def line_of(result: Reconstruction) -> dict[str, Any]:
        field = result.field
        geometry = truth.compare(
            result.mesh,
            thresholds=sampling.thresholds,
            voxel_size=2 / grid.resolution,
            field=field,
            with_iou=has_inside and field is not None,
        ).as_row()
        of_open = {f"open_{iou}": None if closed else geometry[iou] for iou in IOUS}
        of_closed = {iou: geometry[iou] if closed else None for iou in IOUS}
        errors = NO_FIELD
        if field is not None and result.row != "floor":
            errors = asdict(compare_sdf(field.coords, field.sdf, grid.coords, grid.sdf))
        cost = {"num_tokens": result.num_tokens, "bits": result.bits}
        return {"shape": name, "row": result.row} | geometry | of_closed | of_open | errors | cost

    return list(threads.map(line_of, results))
