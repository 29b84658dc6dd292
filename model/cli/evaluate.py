"""`shape-tokenizer evaluate`: what a tokenizer loses of meshes that one has."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import InputError, reason_of
from ..evaluation import (
    REPORT,
    Reconstructor,
    Sampling,
    TrueShape,
    counts_of_levels,
    measure_shapes,
    spread,
    summarise_all,
    write_evaluation,
)
from ..files import write_whole
from ..jobs import Limits
from ..metrics import FSCORE_THRESHOLDS
from ..plots import draw_usage
from ..report import ROW_TITLES, Evaluation, Gallery, figures_of, report_page
from .inputs import named_files, voxelize_files
from .rejects import Rejects
from .tokenizer import load_tokenizer

METRICS = "evaluate.json"
ROW = "stage2"  # what a finished tokenizer is called in every evaluation
SHOWN, IN_3D = 200, 6  # shapes on the report's sheet; of them to turn
PRINTED = ("cd_l1", "fscore_0.01", "surface_iou", "volume_iou", "sign_errors", "num_tokens")


def evaluate_tokenizer(
    tokenizer: str | None,
    meshes: Sequence[Path],
    out: Path,
    *,
    num_points: int,
    seed: int,
    limits: Limits,
    device: str | None,
) -> int:
    """Write report, tables and figures into the folder `out`. Returns how many meshes could not be used.

    Where no tokenizer is named, it is the one that comes with the library.

    Raises InputError where the tokenizer, or every mesh, can't be used.
    """
    rejects = Rejects()
    files = dict(sorted(named_files(meshes, rejects).items()))
    loaded = load_tokenizer(tokenizer, device)
    reconstructor = Reconstructor({ROW: loaded.vqvae}, loaded.device)

    def shapes() -> Iterator[TrueShape]:
        for name, result in voxelize_files(files, loaded, limits, with_surface=True):
            try:
                if isinstance(result, str):
                    raise InputError(result)
                grid = loaded.voxelize(result.grid)  # of which the tokenizer could make no tokens is refused here
            except InputError as error:
                rejects.add(files[name], str(error))
                continue
            assert result.surface is not None
            yield TrueShape(name, grid, result.surface)

    def reject(name: str, error: Exception) -> None:
        remedy = "simplify the mesh, or take --device cpu or a machine with more memory"
        rejects.add(files[name], reason_of(error, given=files[name], more_memory=remedy))

    sampling = Sampling(num_points, FSCORE_THRESHOLDS, seed)
    with TemporaryDirectory() as scratch:
        gallery = Gallery(Path(scratch), rows=(ROW,))
        measured = measure_shapes(shapes(), len(files), reconstructor, sampling, gallery, reject=reject)
        evaluation = summarise_all(measured, reconstructor.use, sampling, resolution=loaded.resolution)
        page = report_page(
            evaluation,
            gallery,
            sheet=spread(evaluation.ranking, SHOWN),
            scenes=spread(evaluation.ranking, IN_3D),
            codebook_plots={"usage_histogram.png": draw_usage(counts_of_levels(reconstructor.use))},
            histories={},
        )
    write_evaluation(out, evaluation, page)
    write_whole(out / METRICS, json.dumps(evaluation.metrics, indent=2) + "\n")
    print(_table(evaluation))
    rejects.conclude(f"evaluated {len(evaluation.ranking)} of {len(files)} meshes; report: {out / REPORT}")
    return rejects.num


def _table(evaluation: Evaluation) -> str:
    """The main figures, a line a row."""
    figures = [figure for figure in figures_of(evaluation.table.columns) if figure.column in PRINTED]
    lines = ["".join([f"{'mean over shapes':24}", *(f"{figure.label:>14}" for figure in figures)])]
    for row, summaries in evaluation.aggregates.items():
        means = (summaries[f.column].mean if f.column in summaries else None for f in figures)
        cells = (f"{figure.show(mean):>14}" for figure, mean in zip(figures, means, strict=True))
        lines.append("".join([f"{ROW_TITLES[row]:24}", *cells]))
    return "\n".join(lines)
