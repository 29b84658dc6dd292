"""Which way to train a codebook is best on held-out shapes, and how near does the original recipe come to it?

    .venv/bin/python -m benchmarks.codebook ways [--json FILE]                          (after make repro)
    .venv/bin/python -m benchmarks.codebook recipe [--rates 0.005 0.05] [--json FILE]   (after make repro)
    ... --size 8192 --all-vectors                             (the published size, on a GPU; ways with --batch 65536)
    ... ways --only "k-means (ours)"                          (a row that joins those of the JSON)
    PYTHONPATH=peers .venv/bin/python -m benchmarks.codebook ways --peers               (vector-quantize-pytorch too)

The folder peers is made by .venv/bin/pip install --no-deps --target peers vector-quantize-pytorch==1.32.0 einops einx
loguru torch-einops-utils frozendict.

ways: on the same cached latents, quality and cost of each. Each row is a process of its own, so that its peak memory is
its own. A row with a learning rate is run with each of --rates, and the best on held-out shapes is its row. The JSON is
written after each row, and the table is printed at the end. A row that fails is recorded, the others go on, and the
exit code is 1; a row that would start after --budget seconds is named under "skipped".

recipe: it starts from uniform(+-1/K) and takes one shape a step: encoder, quantizer, decoder, loss, backward, AdamW.
With the network frozen, only the vq term has a gradient for the codes, so that its steps are taken here on cached
latents, as many of a step as a shape has; what a step through the network takes is measured. Ours is k-means on
latents, all views encoded once by what the encode stage calls, both timed here. For each of --rates: the held-out error
after 1 to --times times our seconds, and when ours was reached, if it was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import chdir
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks import (
    AS_DVC_RUNS_IT,
    add_json,
    add_peers,
    check_peers,
    command_line,
    conditions,
    timed,
    wait,
    watch_memory,
    write_json,
)
from model.checkpoint import load_vae
from model.quantizer import ResidualQuantizer, TrainedCodebook, codebook_statistics, lloyd_pass, normalised_error
from model.vae import SDFTarget, reconstruction_loss
from model.vqvae import VQVAE
from tasks import stage1
from tasks.data import choose_views, draw_vectors, encode_views, load_targets, read_vectors, training_batches
from tasks.run import PARAMS_FILE, Settings, load_settings, paths
from tasks.shards import open_shards
from tasks.training import History, ResumePoint, train

STAGE1_ROWS: dict[str, dict[str, object]] = {
    "k-means (ours)": {"init": "kmeans", "steps": 0},
    "k-means (ours) + steps, EMA": {"init": "kmeans", "update": "ema"},
    "k-means (ours) + steps, gradient": {"init": "kmeans", "update": "gradient"},
    "random latents + EMA + revival": {"init": "data", "update": "ema"},
    "randn + EMA": {"init": "randn", "update": "ema", "revive_below": 0.0},
    "uniform(+-1/K) + Adam": {"init": "uniform", "update": "gradient", "revive_below": 0.0},
}
PEER_ROWS = ("vector-quantize-pytorch: EMA, its k-means init", "vector-quantize-pytorch: SimVQ")
RATED = ("uniform(+-1/K) + Adam", "vector-quantize-pytorch: SimVQ")


def settings_of(options: argparse.Namespace) -> Settings:
    """Of this checkout, with a single level of so many codes."""
    settings = load_settings(PARAMS_FILE)
    section = settings.codebook.model_copy(update={"num_levels": 1, "num_codes": options.size})
    return settings.model_copy(update={"codebook": section})


def with_batch(settings: Settings, batch_size: int) -> Settings:
    return settings.model_copy(update={"stage1": settings.stage1.model_copy(update={"batch_size": batch_size})})


def load_latents(options: argparse.Namespace, settings: Settings) -> tuple[Tensor, Tensor]:
    """The distinct training vectors and those of held-out shapes."""
    cap = None if options.all_vectors else settings.stage1.max_vectors_per_view
    cached = read_vectors(paths.LATENTS, "train", max_per_view=cap, seed=settings.stage1.seed)
    heldout = read_vectors(paths.LATENTS, "val", max_per_view=None, seed=0)
    return cached.to(options.device).unique(dim=0), heldout.to(options.device)


# --- ways to train ---------------------------------------------------------------------------------------------------


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
            stage1.param_groups(codebook),
            steps.losses,
            lambda step: draw_vectors(vectors, params, step),
            settings=params,
            section="stage1",
            resume=ResumePoint("stage1", "benchmark"),
            history=History(Path("history.tsv")),
            after_step=steps.after,
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


def measure_row(options: argparse.Namespace, name: str, rate: float | None) -> dict:
    device, settings = torch.device(options.device), with_batch(settings_of(options), options.batch)
    vectors, heldout = load_latents(options, settings)
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


def run_row(options: argparse.Namespace, name: str, rate: float | None) -> dict:
    command = [sys.executable, "-m", "benchmarks.codebook", "ways", "--row", name, "--device", options.device]
    command += ["--size", str(options.size), "--batch", str(options.batch)]
    command += ["--rate", str(rate)] if rate else []
    command += ["--all-vectors"] if options.all_vectors else []
    done = subprocess.run(command, env=os.environ | AS_DVC_RUNS_IT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"row": name, "lr": rate, "error": f"the row's process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def best_run(runs: list[dict]) -> dict:
    """The run with the lowest held-out error, with the rates of those that failed."""
    failed = [run["lr"] for run in runs if "error" in run]
    best = min(runs, key=lambda run: run.get("heldout_error", float("inf")))
    return best | ({"failed_rates": failed} if failed else {})


def measure_ways(options: argparse.Namespace) -> None:
    if options.row:
        print(json.dumps(measure_row(options, options.row, options.rate)))
        return
    started = time.perf_counter()
    result = conditions(torch.device(options.device)) | {
        "size": options.size,
        "batch": options.batch,
        "rates": options.rates,
    }
    rows: dict[str, dict] = {}
    if options.only and options.json.exists():
        rows = {row["row"]: row for row in json.loads(options.json.read_text())["rows"]}
    skipped: list[str] = []
    for name in options.only or [*STAGE1_ROWS, *(PEER_ROWS if options.peers else ())]:
        if time.perf_counter() - started > options.budget:
            skipped.append(name)
        else:
            rates = options.rates if name in RATED else [None]
            rows[name] = best_run([run_row(options, name, rate) for rate in rates])
            print(rows[name], flush=True)
        result |= {"rows": list(rows.values())} | ({"skipped": skipped} if skipped else {})
        write_json(options.json, result)
    columns = ["row", "usage", "perplexity_ratio", "heldout_error", "train_error", "seconds", "extra_memory_mb"]
    print(pd.DataFrame(list(rows.values())).reindex(columns=columns).to_string(index=False))
    if skipped:
        print(f"skipped, as the budget was spent: {', '.join(skipped)}")
    if any("error" in row or "failed_rates" in row for row in rows.values()):
        sys.exit(1)


# --- the original recipe ---------------------------------------------------------------------------------------------


def measure_network(settings: Settings, device: torch.device) -> dict:
    """A step of stage 1 as the recipe has it: encoder, quantizer and decoder, the codes alone trained.

    Some steps are timed, and the time of settings.stage1.steps follows. On one shape, and on a batch of stage 2's: its
    time for each latent vector says what a step on as many vectors as ours would take.
    """
    vae = load_vae(paths.VAE, device=device).requires_grad_(False)
    (size,) = settings.codebook.per_level
    quantizer = ResidualQuantizer([size], vae.config.latent_channels).to(device)
    nn.init.uniform_(quantizer.codebooks[0], -1 / size, 1 / size)
    network = VQVAE(vae, quantizer)
    shards = open_shards(paths.SDF)
    names = shards.names("train")
    targets = list(load_targets(shards, names[:: max(1, len(names) // 16)][:16], device=device))
    batches = [batch.target for batch in islice(training_batches(shards, settings.stage2, device)(0), 2)]
    optimizer = torch.optim.AdamW(quantizer.parameters())

    def steps(targets: list[SDFTarget]) -> int:
        num_latents = 0
        for target in targets:
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                output = network(target.band, target.plan)
                fit = reconstruction_loss(output.decoded, target, kind="l1+l2")
                loss = fit.recon + output.quantized.vq_loss + output.quantized.commitment_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_latents += len(output.quantized.indices)
        return num_latents

    def encode() -> None:
        with torch.no_grad():
            for target in targets:
                vae.encode(target.band)

    per_step = timed(lambda: steps(targets), device, 3) / len(targets)
    per_batch = timed(lambda: steps(batches), device, 3) / len(batches)
    latents_of_batch = steps(batches) / len(batches)
    views = len(names) * settings.encode.train_symmetries
    return {
        "row": "recipe",
        "timed_steps_one_shape": len(targets),
        "timed_steps_batch": len(batches),
        "ms_per_step_one_shape": per_step,
        "latents_of_one_shape": steps(targets) / len(targets),
        "seconds_for_the_steps": per_step * settings.stage1.steps / 1000,
        "ms_per_step_batch": per_batch,
        "latents_of_batch": latents_of_batch,
        "seconds_for_the_steps_on_our_batch": (
            per_batch * settings.stage1.batch_size / latents_of_batch * settings.stage1.steps / 1000
        ),
        "ms_to_encode_one_shape": timed(encode, device, 3) / len(targets),
        "num_views_encoded_once": views,
    }


def ours(vectors: Tensor, heldout: Tensor, settings: Settings) -> dict:
    """From the files on: all training views encoded as the encode stage does, then k-means."""
    shards = open_shards(paths.SDF)
    vae = load_vae(paths.VAE, device=vectors.device)
    views = choose_views(shards.names("train"), settings.encode.train_symmetries)
    started = time.perf_counter()
    for _ in encode_views(vae, shards, views):
        pass
    encoded = time.perf_counter()
    codes = stage1.start_codes(vectors, settings.codebook.per_level[0], settings.stage1).to(vectors.device)
    wait(vectors.device)
    return {
        "seconds_of_encoding": encoded - started,
        "seconds_of_kmeans": time.perf_counter() - encoded,
        "heldout_error": normalised_error(heldout, ResidualQuantizer.of([codes]), reference=heldout),
    }


def recipe(
    vectors: Tensor, heldout: Tensor, settings: Settings, *, rate: float, checks: list[int], target: float
) -> list[dict]:
    """The held-out error after each number of steps of `checks`, until it is below the target."""
    params = settings.stage1.model_copy(update={"init": "uniform"})
    start = stage1.start_codes(vectors, settings.codebook.per_level[0], params).to(vectors.device)
    quantizer = ResidualQuantizer.of([start])
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=rate, weight_decay=params.weight_decay, fused=True)
    found = []
    for step, batch in enumerate(draw_vectors(vectors, params, 0), 1):
        loss = quantizer(batch.vectors).vq_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in checks:
            codes = quantizer.codebooks[0].detach()
            error = normalised_error(heldout, ResidualQuantizer.of([codes]), reference=heldout)
            usage = codebook_statistics(lloyd_pass(heldout, codes).counts).usage
            found.append({"steps": step, "heldout_error": error, "usage": usage})
            print(f"lr {rate}: {found[-1]}", flush=True)
            if error <= target or step == checks[-1]:
                break
    return found


def measure_recipe(options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    settings = settings_of(options)
    vectors, heldout = load_latents(options, settings)

    network, found = measure_network(settings, device), ours(vectors, heldout, settings)
    seconds = found["seconds_of_kmeans"] + found["seconds_of_encoding"]
    per_step = network["ms_per_step_one_shape"] / 1000
    checks = [
        int(times * seconds / per_step) for times in sorted({1, 2, 5, 10, 20, options.times}) if times <= options.times
    ]
    batch = round(network["latents_of_one_shape"])
    settings = with_batch(settings, batch)
    runs = {
        str(rate): recipe(vectors, heldout, settings, rate=rate, checks=checks, target=found["heldout_error"])
        for rate in options.rates
    }
    for run in runs.values():
        for row in run:
            row["times_our_seconds"] = row["steps"] * per_step / seconds
    result = conditions(device) | {
        "rates": options.rates,
        "size": options.size,
        "latents_a_step": batch,
        "ours": found,
        "network": network,
        "recipe_by_lr": runs,
    }
    write_json(options.json, result)


def main() -> None:
    parser = command_line(__doc__)
    questions = parser.add_subparsers(required=True)
    ways, recipe = questions.add_parser("ways"), questions.add_parser("recipe")
    for question, measure, name in ((ways, measure_ways, "codebook"), (recipe, measure_recipe, "codebook_recipe")):
        question.set_defaults(measure=measure, peers=False)
        add_json(question, f"{name}.json")
        question.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        question.add_argument("--size", type=int, default=1024, help="codes (%(default)s)")
        question.add_argument("--all-vectors", action="store_true", help="no cap per shape")
        question.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.005, 0.05], help="learning rates")
    add_peers(ways)
    ways.add_argument("--batch", type=int, default=8192, help="vectors a step (%(default)s)")
    ways.add_argument("--only", nargs="*", default=[], choices=[*STAGE1_ROWS, *PEER_ROWS])
    ways.add_argument("--budget", type=float, default=float("inf"), metavar="SECONDS", help="start no row after it")
    ways.add_argument("--row", help=argparse.SUPPRESS)
    ways.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    recipe.add_argument("--times", type=int, default=50, help="how many times our seconds to go on (%(default)s)")
    options = parser.parse_args()
    check_peers(parser, options)
    options.measure(options)


if __name__ == "__main__":
    main()
