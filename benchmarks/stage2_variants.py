"""What does quantisation cost after stage 2, against the same network trained as long without codes?

    .venv/bin/python -m benchmarks.stage2_variants train FOLDER [--seeds 0 1] [--only NAME...] [--steps 2000]
    .venv/bin/python -m benchmarks.stage2_variants compare FOLDER [--json FILE]

`train`, in a checkout where `dvc repro gate` has run with presets/resolution_128.yaml, trains each variant of VARIANTS
in a folder of its own, FOLDER/NAME_seedN, one on each GPU at a time; what was interrupted goes on when it runs again.
`compare` takes every test shape through the VAE, stage 1 and all variants that are there, in one run: means, use of the
codes, bits a shape, and the differences to the twin of the same seed, paired over shapes, with 95 % intervals; and a
picture of these against the bits beside the JSON. IoUs are over the shapes whose true mesh is closed, by the sign of
the decoded field.
"""

import argparse
import os
import queue
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml

from benchmarks import AS_DVC_RUNS_IT, ROOT, add_json, command_line, conditions, write_json
from benchmarks.tokens import bits_of_places
from model.checkpoint import load_vae
from model.device import pick_device
from model.evaluation import CodeUse, Reconstructor, Sampling, measure_shapes
from model.quantizer import ResidualQuantizer, codebook_statistics, statistics_of_levels
from model.report import Gallery, compare_rows
from model.tokens import Tokens, Vocabulary
from model.vqvae import VQVAE, load_vqvae, unquantized
from tasks.data import choose_views, encode_views, load_codebooks
from tasks.evaluate import true_shapes
from tasks.run import load_settings, paths
from tasks.shards import Shards, open_shards

VARIANTS: dict[str, dict[str, Any]] = {  # what differs from params.yaml
    "one_level": {},
    "revive_tenth": {"codebook": {"revive_below": 0.1}},
    "two_levels": {"codebook": {"num_levels": 2, "revive_below": 0.1}},
    "twin": {},
    "gradient": {  # what was the way before
        "codebook": {"update": "gradient", "revive_below": 0.0},
        "stage2": {"lambda_commitment": 4.0, "encoder_lr_ratio": 0.1},
    },
    "decoder_alone": {"stage2": {"train": "decoder"}},
}
APART = 500  # bits, of points in the picture
NAMES = {"s_iou": "S-IoU", "v_iou": "V-IoU"}
SHARED = (paths.SDF, paths.VAE, Path("artifacts/latents"))
FIGURES = {
    "sdf_l1": "l1",
    "sign_errors": "sign_errors",
    "cd_l1": "cd_l1",
    "surface_iou": "s_iou",
    "volume_iou": "v_iou",
}


def main() -> None:
    parser = command_line(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train_parser = commands.add_parser("train")
    train_parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    train_parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    train_parser.add_argument("--steps", type=int, help="in place of those in params.yaml")
    compare_parser = commands.add_parser("compare")
    add_json(compare_parser, "stage2_variants.json")
    for each in (train_parser, compare_parser):
        each.add_argument("folder", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.command == "train":
        train(options)
    else:
        found = compare(options.folder)
        write_json(options.json, found)
        draw_frontier(found, options.json.with_suffix(".png"))


def train(options: argparse.Namespace) -> None:
    """All variants, as many at a time as there are GPUs, or one on a CPU."""
    gpus: queue.Queue[str] = queue.Queue()
    for number in range(max(torch.cuda.device_count(), 1)):
        gpus.put(str(number))

    def on_a_gpu(folder: Path) -> None:
        gpu = gpus.get()
        try:
            train_variant(folder, gpu)
        finally:
            gpus.put(gpu)

    steps = {"stage2": {"steps": options.steps}} if options.steps else {}
    runs = [write_run(options.folder, name, seed, steps) for seed in options.seeds for name in options.only]
    with ThreadPoolExecutor(gpus.qsize()) as threads:
        list(threads.map(on_a_gpu, runs))


def write_run(folder: Path, name: str, seed: int, steps: Mapping[str, Any]) -> Path:
    """The folder of a variant: its parameters, and links to what all share."""
    run = folder / f"{name}_seed{seed}"
    run.mkdir(parents=True, exist_ok=True)
    params = merged(merged(yaml.safe_load((ROOT / "params.yaml").read_text()), VARIANTS[name]), steps)
    (run / "params.yaml").write_text(yaml.safe_dump(merged(params, {"stage2": {"seed": seed}})))
    own_codebook = "num_levels" in VARIANTS[name].get("codebook", {})
    for path in (*SHARED, *(() if own_codebook else (Path("artifacts/codebook"), paths.PASS_TOKEN.parent))):
        link = run / path
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to((ROOT / path).resolve())
    return run


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, **{k: merged(values[k], v) if isinstance(v, dict) else v for k, v in changes.items()}}


def train_variant(run: Path, gpu: str) -> None:
    """The stages that it needs, their output in a log; none where it is trained already."""
    stages = ["twin"] if run.name.startswith("twin") else ["stage2"]
    if (run / (paths.TWIN if stages == ["twin"] else paths.STAGE2)).is_dir():
        return
    if stages == ["stage2"] and not (run / paths.PASS_TOKEN).is_file():
        stages = ["stage1", "gate", "stage2"]
    environment = os.environ | AS_DVC_RUNS_IT | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": gpu}
    with (run / "log").open("a") as log:
        for stage in stages:
            print(f"{run.name}: {stage} on GPU {gpu}; {run / 'log'}", flush=True)
            command = [sys.executable, "-m", f"tasks.{stage}"]
            subprocess.run(command, cwd=run, env=environment, stdout=log, stderr=log, check=True)


def compare(folder: Path) -> dict[str, Any]:
    settings, shards, device = load_settings(), open_shards(paths.SDF), pick_device()
    vae = load_vae(paths.VAE)
    networks = {"vae": unquantized(vae), "stage1": VQVAE(vae, ResidualQuantizer.of(load_codebooks()))}
    networks |= {run.name: trained_in(run) for run in sorted(folder.iterdir()) if run.is_dir()}
    reconstructor = Reconstructor(networks, device)
    params = settings.evaluate
    sampling = Sampling(params.num_points, params.fscore_thresholds, params.seed)
    with TemporaryDirectory() as scratch:
        gallery = Gallery(Path(scratch), rows=())
        names = shards.names("test")
        table = measure_shapes(true_shapes(shards, names), len(names), reconstructor, sampling, gallery).table
    rows = {}
    for row, lines in table.groupby("row", sort=False):
        means = lines[list(FIGURES)].mean().rename(FIGURES).dropna()
        figures: dict[str, Any] = {str(name): float(value) for name, value in means.items()}
        if row in reconstructor.use:
            use = reconstructor.use[str(row)]
            figures["test_codes"] = [asdict(codebook_statistics(counts)) for counts in use.counts]
            figures["heldout_codes"] = heldout_codes(networks[str(row)], shards, settings.encode.heldout_symmetries)
            figures |= bits_a_shape(use, shards)
        rows[row] = figures
    closed = table[(table.row == "vae") & table.surface_iou.notna()]
    return conditions(device) | {
        "resolution": shards.resolution,
        "num_test_shapes": len(shards.names("test")),
        "num_closed": len(closed),
        "rows": rows,
        "to_the_twin": {row: change for row in networks if (change := to_the_twin(table, row, seed=params.seed))},
    }


def trained_in(run: Path) -> VQVAE:
    return (
        unquantized(load_vae(run / paths.TWIN)) if (run / paths.TWIN).is_dir() else load_vqvae(run / paths.STAGE2).vqvae
    )


def heldout_codes(network: VQVAE, shards: Shards, num_symmetries: int) -> list[dict[str, Any]]:
    """Use of each level's codes on validation shapes under the cube's symmetries, as the gates judge it."""
    views = choose_views(shards.names("val"), num_symmetries)
    latents = torch.cat([view.mean for view in encode_views(network.vae, shards, views)])
    return [asdict(use) for use in statistics_of_levels(network.quantizer, latents.to(network.quantizer.device))]


def bits_a_shape(use: CodeUse, shards: Shards) -> dict[str, float]:
    """Mean over test shapes: of codes, were all equally frequent, and of their places as the flat sequence has them."""
    vocabulary = Vocabulary(tuple(use.quantizer.num_codes), shards.resolution // 8)
    of_codes, of_places = [], []
    for name in shards.names("test"):
        coords = np.unique(shards.read(name).coords // 8, axis=0)
        indices = np.zeros((len(coords), len(use.quantizer.levels)), np.int64)
        tokens = Tokens(coords, indices if indices.shape[1] > 1 else indices[:, 0], np.zeros(3), 1.0, "")
        of_codes.append(len(coords) * use.quantizer.bits)
        of_places.append(bits_of_places(tokens, vocabulary))
    return {"bits_of_codes": mean(of_codes), "bits_of_places": mean(of_places)}


def to_the_twin(table: pd.DataFrame, row: str, *, seed: int) -> dict[str, Any] | None:
    """What is lost against the twin of the same seed, or else of the first: by figure, the paired difference."""
    twins = sorted(name for name in table.row.unique() if name.startswith("twin"))
    twin = next((name for name in twins if name.removeprefix("twin") == row[-len("_seed0") :]), next(iter(twins), None))
    if twin is None or row in twins:
        return None
    lost: dict[str, Any] = {"twin": twin}
    for figure, change in compare_rows(table[table.row == twin], table[table.row == row], seed=seed):
        if figure.column in FIGURES:
            kept = ("mean", "ci_low", "ci_high", "num_shapes")
            lost[FIGURES[figure.column]] = {key: getattr(change, key) for key in kept}
    return lost


def draw_frontier(found: Mapping[str, Any], file: Path) -> None:
    """What codes cost in points of IoU, with 95 % intervals, against the bits of a shape, its places included.

    Rows of as many bits stand side by side.
    """
    coded = {row: figures for row, figures in found["rows"].items() if "bits_of_codes" in figures}
    bits = {row: figures["bits_of_codes"] + figures["bits_of_places"] for row, figures in coded.items()}
    figure, plots = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axes, key in zip(plots, ("s_iou", "v_iou"), strict=True):
        for row in coded:
            lost = found["to_the_twin"][row][key]
            beside = [other for other in coded if bits[other] == bits[row]]
            place = bits[row] + APART * (beside.index(row) - (len(beside) - 1) / 2)
            cost, bars = -100 * lost["mean"], [[lost["ci_high"] - lost["mean"]], [lost["mean"] - lost["ci_low"]]]
            axes.errorbar(place, cost, 100 * np.array(bars), fmt="o", capsize=3, label=row.replace("_", " "))
        axes.axhline(0, color="gray", linestyle=":", label="twin")
        axes.set(xlabel="bits a shape, mean", ylabel=f"{NAMES[key]} lost to the twin, points")
        axes.set_xlim(left=0)
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
