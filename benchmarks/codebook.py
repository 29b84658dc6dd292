"""Which way to train a codebook is best on held-out shapes, on the same cached latents, and what does each cost?

    .venv/bin/python -m benchmarks.codebook [--json FILE]                          (after make repro)
    ... --size 8192 --batch 65536 --all-vectors                                    (the published size; on a GPU)
    ... --only recipe stage1                                                       (rows that join those of the JSON)
    PYTHONPATH=peers .venv/bin/python -m benchmarks.codebook --peers               (vector-quantize-pytorch too)

The folder peers is made by .venv/bin/pip install --no-deps --target peers vector-quantize-pytorch==1.32.0 einops einx
loguru torch-einops-utils frozendict.
On a CPU each row is a process of its own, so that its peak memory is its own; on a GPU one process reads the latents
once. A row with a learning rate is run with each of --rates, and the best on held-out shapes is its row. `recipe` is
the time of a step through the frozen network, as the original recipe trains (codebook_recipe says how far that gets);
on a CPU `stage1` is all of python -m tasks.stage1 on 200 000 vectors.
The JSON is written after each row, and the table is printed at the end. A row that fails is recorded with its error,
the others go on, and the exit code is 1; a row that would start after --budget seconds is named under "skipped".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import (
    AS_DVC_RUNS_IT,
    add_peers,
    check_peers,
    command_line,
    conditions,
    seconds_of_stage,
    wait,
    watch_memory,
    write_json,
)
from benchmarks.codebook_recipe import load_latents, measure_recipe, of_size
from model.quantizer import ResidualQuantizer, TrainedCodebook, codebook_statistics, lloyd_pass, normalised_error
from model.tables import read_rows, write_rows
from tasks import stage1
from tasks.data import draw_vectors, latents_file, latents_files
from tasks.run import LATENTS, METRICS, PARAMS_FILE, SDF, VAE, Settings, load_settings
from tasks.training import History, ResumePoint, train

STAGE1_VECTORS = 200_000
STAGE1_ROWS: dict[str, dict[str, object]] = {
    "k-means (ours)": {"init": "kmeans", "steps": 0},
    "k-means (ours) + steps, EMA": {"init": "kmeans", "update": "ema"},
    "k-means (ours) + steps, gradient": {"init": "kmeans", "update": "gradient"},
    "random latents + EMA + revival": {"init": "data", "update": "ema"},
    "randn + EMA": {"init": "randn", "update": "ema", "revive_below": 0.0},
    "uniform(+-1/K) + Adam": {"init": "uniform", "update": "gradient", "revive_below": 0.0},
}
OURS = tuple(STAGE1_ROWS)[:3]
PEER_ROWS = ("vector-quantize-pytorch: EMA, its k-means init", "vector-quantize-pytorch: SimVQ")
RATED = ("uniform(+-1/K) + Adam", "vector-quantize-pytorch: SimVQ")


def of_stage1(vectors: Tensor, settings: Settings, rate: float | None, changes: dict[str, object]) -> Tensor:
    """By the functions of tasks/stage1.py, without the network that it watches."""
    of_codes: dict[str, Any] = {key: changes[key] for key in ("update", "revive_below") if key in changes}
    of_stage = {key: value for key, value in changes.items() if key not in of_codes}
    params = settings.stage1.model_copy(update=of_stage | ({"lr": rate} if rate else {}))
    shared = settings.codebook.model_copy(update=of_codes)
    settings = settings.model_copy(update={"stage1": params, "codebook": shared})
    (size,) = shared.per_level
    if changes["init"] == "randn":
        codes = torch.randn(size, vectors.shape[1], generator=torch.Generator().manual_seed(params.seed))
    else:
        codes = stage1.start_codes(vectors, size, params)
    codes = codes.to(vectors.device)
    if not params.steps:
        return codes
    codebook = TrainedCodebook([codes], update=shared.update, decay=shared.ema_decay, revive_below=shared.revive_below)
    steps = stage1.CodebookSteps(codebook, settings)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        train(
            codebook,
            stage1.parameter_groups(codebook),
            steps.losses,
            lambda step: draw_vectors(vectors, params, step),
            settings=params,
            resume=ResumePoint("stage1", "benchmark"),
            history=History(Path("history.tsv")),
            after_step=steps.after,
            description="codebook",
        )
    return codebook.codebooks[0].detach()


def of_peer_ema(vectors: Tensor, settings: Settings) -> Tensor:
    from vector_quantize_pytorch import VectorQuantize

    peer = VectorQuantize(
        vectors.shape[1],
        settings.codebook.num_codes,
        decay=settings.codebook.ema_decay,
        kmeans_init=True,
        kmeans_iters=10,
        threshold_ema_dead_code=2,
    ).to(vectors.device)
    batches = draw_vectors(vectors, settings.stage1, 0)
    peer.train()
    with torch.no_grad():
        for _ in range(settings.stage1.steps):
            peer(next(batches).vectors[None])
    return peer.codebook.detach().reshape(settings.codebook.num_codes, -1).float()


def of_peer_simvq(vectors: Tensor, settings: Settings, rate: float) -> Tensor:
    from vector_quantize_pytorch import SimVQ

    peer = SimVQ(vectors.shape[1], settings.codebook.num_codes).to(vectors.device)
    optimizer = torch.optim.Adam(peer.parameters(), lr=rate)
    batches = draw_vectors(vectors, settings.stage1, 0)
    for _ in range(settings.stage1.steps):
        _, _, loss = peer(next(batches).vectors[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return peer.codebook.detach()


def measure_row(name: str, rate: float | None, settings: Settings, device: torch.device, cap: int | None) -> dict:
    vectors, heldout = load_latents(device, cap, settings.stage1.seed)
    torch.manual_seed(settings.stage1.seed)
    peak = watch_memory(device)
    started = time.perf_counter()
    if name in STAGE1_ROWS:
        codes = of_stage1(vectors, settings, rate, STAGE1_ROWS[name])
    elif name == PEER_ROWS[0]:
        codes = of_peer_ema(vectors, settings)
    else:
        assert rate is not None, "a rated row has a rate"
        codes = of_peer_simvq(vectors, settings, rate)
    wait(device)
    seconds, memory = time.perf_counter() - started, peak()
    use = codebook_statistics(lloyd_pass(heldout, codes).counts)
    return {
        "row": name,
        "lr": rate,
        "usage": use.usage,
        "perplexity_ratio": use.perplexity / len(codes),
        "top_share": use.top_share,
        "heldout_error": normalised_error(heldout, ResidualQuantizer.of([codes]), reference=heldout),
        "train_error": normalised_error(vectors, ResidualQuantizer.of([codes]), reference=heldout),
        "seconds": seconds,
        "extra_memory_mb": memory,
        "num_vectors": len(vectors),
        "num_heldout": len(heldout),
        "dim": vectors.shape[1],
    }


def measure_stage1() -> dict:
    """Wall time of the stage with its decoded validation shapes, on the latents of both splits, cut to 200 000."""
    remedy = "run dvc repro encode"
    files = {split: latents_files(LATENTS, split) for split in ("train", "val")}
    rows = {split: [row for file in of for row in read_rows(file, remedy=remedy)] for split, of in files.items()}
    whole, val = [*rows["train"], *rows["val"]], rows["val"]
    lengths = np.array([len(row["mean"][0]) // row["latent_channels"][0].as_py() for row in whole])
    whole = whole[: int((lengths.cumsum() <= STAGE1_VECTORS).sum()) + 1]
    with tempfile.TemporaryDirectory() as folder:
        for path in (VAE, SDF):
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).symlink_to(path.resolve())
        (Path(folder) / LATENTS).mkdir()
        write_rows(Path(folder) / latents_file(LATENTS, "train"), whole, whole[0].schema)
        write_rows(Path(folder) / latents_file(LATENTS, "val"), val, val[0].schema)
        (Path(folder) / PARAMS_FILE).write_bytes(PARAMS_FILE.read_bytes())
        seconds = seconds_of_stage("stage1", Path(folder))
        figures = json.loads((Path(folder) / METRICS / "stage1.json").read_text())
    return {
        "row": "stage1",
        "num_vectors": int(lengths[: len(whole)].sum()),
        "num_distinct": figures["num_vectors"],
        "wall_seconds": seconds,
    }


def run_row(arguments: argparse.Namespace, name: str, rate: float | None) -> dict:
    """One row, or its error: here on a GPU, in a process of its own on a CPU."""
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
        return one_row(arguments, name, rate)
    command = [sys.executable, "-m", "benchmarks.codebook", "--row", name, "--device", arguments.device]
    command += ["--size", str(arguments.size), "--batch", str(arguments.batch)]
    command += ["--rate", str(rate)] if rate else []
    command += ["--all-vectors"] if arguments.all_vectors else []
    environment = os.environ | AS_DVC_RUNS_IT
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False, cwd=Path.cwd())
    if done.returncode:
        return {"row": name, "lr": rate, "error": f"the row's process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = command_line(__doc__, "codebook.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add_peers(parser)
    parser.add_argument("--size", type=int, default=1024, help="codes (%(default)s)")
    parser.add_argument("--batch", type=int, default=8192, help="vectors a step (%(default)s)")
    parser.add_argument("--all-vectors", action="store_true", help="no cap per shape")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.005, 0.05], help="learning rates")
    parser.add_argument("--only", nargs="*", default=[], choices=[*STAGE1_ROWS, *PEER_ROWS, "recipe", "stage1"])
    parser.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="start no row after it")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check_peers(parser, arguments)
    started = time.perf_counter()
    if arguments.row:
        print(json.dumps(one_row(arguments, arguments.row, arguments.rate)))
        return
    peer_rows = PEER_ROWS if arguments.peers else ()
    names = [*OURS, "recipe", *[name for name in STAGE1_ROWS if name not in OURS], *peer_rows]
    names += ["stage1"] if arguments.device == "cpu" else []
    rows: dict[str, dict] = {}
    if arguments.only and arguments.json.exists():
        rows = {row["row"]: row for row in json.loads(arguments.json.read_text())["rows"]}
    skipped: list[str] = []
    for name in arguments.only or names:
        if time.perf_counter() - started > arguments.budget:
            skipped.append(name)
        else:
            runs = [run_row(arguments, name, rate) for rate in (arguments.rates if name in RATED else [None])]
            rows[name] = best_run(runs)
            print(rows[name], flush=True)
        write(arguments, list(rows.values()), skipped)
    print_table(list(rows.values()), skipped)
    if any("error" in row or "failed_rates" in row for row in rows.values()):
        sys.exit(1)


def best_run(runs: list[dict]) -> dict:
    """The run with the lowest held-out error, with the errors of those that failed."""
    errors = [f"lr {run['lr']}: {run['error']}" for run in runs if "error" in run]
    if len(errors) == len(runs):
        return runs[0]
    best = min((run for run in runs if "error" not in run), key=lambda run: run.get("heldout_error", 0.0))
    return best | ({"failed_rates": errors} if errors else {})


def one_row(arguments: argparse.Namespace, name: str, rate: float | None) -> dict:
    """The row's figures, or its error, so that the others go on."""
    try:
        return figures_of_row(arguments, name, rate)
    except Exception as error:  # noqa: BLE001  # whatever ends one row, the others are worth having
        traceback.print_exc()
        return {"row": name, "lr": rate, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def figures_of_row(arguments: argparse.Namespace, name: str, rate: float | None) -> dict:
    device = torch.device(arguments.device)
    settings = of_size(load_settings(PARAMS_FILE), arguments.size)
    stage1_params = settings.stage1.model_copy(update={"batch_size": arguments.batch})
    settings = settings.model_copy(update={"stage1": stage1_params})
    if name == "recipe":
        return measure_recipe(settings, device)
    if name == "stage1":
        return measure_stage1()
    cap = None if arguments.all_vectors else settings.stage1.max_vectors_per_view
    return measure_row(name, rate, settings, device, cap)


def write(arguments: argparse.Namespace, rows: list[dict], skipped: list[str]) -> None:
    result = conditions(torch.device(arguments.device)) | {
        "size": arguments.size,
        "batch": arguments.batch,
        "rates": arguments.rates,
        "rows": rows,
    }
    if skipped:
        result["skipped"] = skipped
    write_json(arguments.json, result)


def print_table(rows: list[dict], skipped: list[str]) -> None:
    trained = [row for row in rows if "heldout_error" in row]
    print("row | usage | perplexity / K | held-out error | train error | seconds | extra MB")
    for row in trained:
        print(
            f"{row['row']} | {row['usage']:.3f} | {row['perplexity_ratio']:.3f} | {row['heldout_error']:.4f} | "
            f"{row['train_error']:.4f} | {row['seconds']:.1f} | {row['extra_memory_mb']:.0f}"
        )
    if trained:
        best = min(trained, key=lambda row: row["heldout_error"])
        print(f"lowest held-out error: {best['row']}, {best['heldout_error']:.5f}")
    for row in rows:
        if "error" in row:
            print(f"failed: {row['row']}: {row['error']}")
    if skipped:
        print(f"skipped, as the budget was spent: {', '.join(skipped)}")


if __name__ == "__main__":
    main()
