"""Measure on the test split what the grid, the VAE, stage 1 and stage 2 each lose, and show it."""

from collections.abc import Iterator, Mapping, Sequence
from shutil import rmtree
from typing import Any

import pandas as pd

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import LONG_TIMEOUT, in_process_group, own_span, rank, shared
from model.errors import InputError
from model.evaluation import (
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
from model.files import whole_directory, write_whole
from model.plots import draw_history, draw_usage, read_history, usage_table
from model.quantizer import ResidualQuantizer
from model.report import (
    CODEBOOK_TITLES,
    COSTS,
    ROW_TITLES,
    Evaluation,
    Gallery,
    draw_shapes,
    report_page,
)
from model.tables import write_table
from model.vqvae import VQVAE, load_vqvae, unquantized
from tasks.data import load_codebooks
from tasks.run import Settings, paths, run_stage, write_metrics
from tasks.shards import Shards, open_shards

HEADLINE_FIGURES = {"cd_l1": "cd_l1", "surface_iou": "s_iou", "volume_iou": "v_iou", "num_tokens": "tokens"}


@in_process_group(LONG_TIMEOUT)
def evaluate(settings: Settings) -> None:
    params = settings.evaluate
    shards = open_shards(paths.SDF)
    names = shards.names("test")
    if not names:
        raise InputError(f"{paths.SDF} has no test shape, expected at least 1; raise voxelize.test_share or add meshes")
    histories = {stage: read_history(paths.METRICS / f"{stage}_history.tsv") for stage in ("stage1", "stage2")}
    reconstructor = Reconstructor(load_networks(twin=bool(settings.upstream.twin)), pick_device())
    sampling = Sampling(params.num_points, params.fscore_thresholds, params.seed)

    own = [names[i] for i in own_span(shards.index.num_voxels[names].tolist())]

    with shared(lambda: whole_directory(paths.EVALUATION)) as directory:
        scratch = directory / "meshes"
        scratch.mkdir(exist_ok=True)
        gallery = Gallery(scratch)
        measured = measure_shapes(true_shapes(shards, own), len(own), reconstructor, sampling, gallery)
        if rank() > 0:
            return
        evaluation = summarise_all(measured, reconstructor.use, sampling, resolution=shards.resolution)
        counts = counts_of_levels(reconstructor.use)
        plots = {
            "shapes.png": draw_shapes(evaluation.ranking, spread(evaluation.ranking, params.picture_shapes), gallery),
            "loss_curves.png": draw_history(histories),
            "usage_histogram.png": draw_usage(counts),
            "usage_histogram.tsv": usage_table(counts).encode(),
        }
        page = report_page(
            evaluation,
            gallery,
            sheet=spread(evaluation.ranking, params.report_shapes),
            scenes=spread(evaluation.ranking, params.report_views),
            codebook_plots={"usage_histogram.png": plots["usage_histogram.png"]} | codebook_pictures(),
            histories=histories,
        )
        write_evaluation(directory, evaluation, page)
        rmtree(scratch)
    with whole_directory(paths.PLOTS) as directory:
        for name, content in plots.items():
            write_whole(directory / name, content)
    write_metrics("evaluate", evaluation.metrics)
    write_metrics("headline", headline(evaluation.metrics))
    # Apart from the evaluation, whose bytes must not depend on the clock.
    write_table(paths.TIMINGS / "evaluate.parquet", evaluation.costs)
    print_outcome(evaluation)


def load_networks(*, twin: bool) -> dict[str, VQVAE]:
    """What the stages before left, by row. Raises InputError naming the file that is missing or damaged."""
    if twin and not paths.TWIN.is_dir():
        raise InputError(
            f"upstream.twin is [run], and {paths.TWIN} is missing; train it by .venv/bin/dvc repro "
            "tasks/upstream/dvc.yaml:twin@run, or set upstream.twin: []"
        )
    vae = load_vae(paths.VAE)
    networks = {"vae": unquantized(vae), "stage1": VQVAE(vae, ResidualQuantizer.of(load_codebooks()))}
    networks["stage2"] = load_vqvae(paths.STAGE2).vqvae
    if twin:
        networks["twin"] = unquantized(load_vae(paths.TWIN))
    return networks


def true_shapes(shards: Shards, names: Sequence[str]) -> Iterator[TrueShape]:
    return (TrueShape(name, shards.read(name), shards.read_surface(name)) for name in names)


def codebook_pictures() -> dict[str, bytes]:
    """What the gate drew of the codebook."""
    drawn = [paths.CODEBOOK_PLOTS / name for name in CODEBOOK_TITLES if name.startswith("codebook_")]
    return {path.name: path.read_bytes() for path in drawn if path.is_file()}


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Few figures under short names that no other file has, or `dvc exp show` would put the file before each: those of
    stage 2, and the distances of what it was made from."""
    figures = {short: metrics["stage2"][name] for name, short in HEADLINE_FIGURES.items() if name in metrics["stage2"]}
    figures |= {name: metrics["codebook"]["stage2"][name] for name in ("usage", "perplexity")}
    figures |= {f"{row}_cd_l1": metrics[row]["cd_l1"] for row in ("stage1", "vae")}
    return {name: float(f"{value:.4g}") for name, value in figures.items()}


def print_outcome(evaluation: Evaluation) -> None:
    metrics, costs = evaluation.metrics, evaluation.costs
    rows = [row for row in ROW_TITLES if row in metrics]
    distances = ", ".join(f"{row} {metrics[row]['cd_l1']:.5f}" for row in rows)
    failures = sum(metrics[row]["failures"] for row in rows)
    print(f"mean CD-L1 over {metrics['stage2']['num_shapes']} test shapes: {distances}; failures: {failures}")
    for cost in COSTS:
        medians = costs.groupby("row")[cost.column].median()
        shown = ", ".join(f"{row} {cost.show(medians[row])}" for row in rows if not pd.isna(medians[row]))
        print(f"{cost.label}, median of a shape: {shown}")
    print(f"report: {paths.EVALUATION / REPORT}")


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
