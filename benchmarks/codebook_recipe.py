"""How near the original recipe comes to our codebook in many times our time: codes trained through the frozen network.

    .venv/bin/python -m benchmarks.codebook_recipe      (after dvc repro, which leaves artifacts/latents)
    ... --size 8192 --all-vectors --json FILE           (the published size; on a GPU where there is one)

The recipe starts from uniform(+-1/K) and takes one shape a step: encoder, quantizer, decoder, loss, backward, AdamW.
With the network frozen, only the vq term has a gradient for the codes, so that its steps are taken here on cached
latents, as many of a step as a shape has; what a step through the network takes is measured (row `recipe` of
codebook.py). Ours is k-means on latents, all views encoded once by what the encode stage calls, both timed here. For
each of --rates: the held-out error after 1 to --times times our seconds, and when ours was reached, if it was. Writes
codebook_recipe.json (or --json).
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.codebook import load_latents
from benchmarks.measure import wait
from benchmarks.recipe_step import measure_recipe
from model.checkpoint import load_vae
from model.quantizer import VectorQuantizer, codebook_statistics, lloyd_pass
from tasks.data import choose_views, encode_views
from tasks.run import PARAMS_FILE, SDF, VAE, Settings, load_settings
from tasks.shards import open_shards
from tasks.stage1 import draw_vectors, normalised_error, start_codes

ROOT = Path(__file__).parents[1]


def seconds_to_encode(settings: Settings, device: torch.device) -> float:
    """All training views, as the encode stage does, from the files on."""
    shards = open_shards(SDF)
    vae = load_vae(VAE, device=device)
    views = choose_views(shards.names("train"), settings.encode.train_symmetries)
    started = time.perf_counter()
    for _ in encode_views(vae, shards, views):
        pass
    return time.perf_counter() - started


def ours(vectors: Tensor, heldout: Tensor, settings: Settings) -> dict:
    encoding = seconds_to_encode(settings, vectors.device)
    started = time.perf_counter()
    codes = start_codes(vectors, settings.codebook.num_codes, settings.stage1).to(vectors.device)
    wait(vectors.device)
    seconds = time.perf_counter() - started
    return {
        "seconds_of_encoding": encoding,
        "seconds_of_kmeans": seconds,
        "heldout_error": normalised_error(heldout, codes, vectors),
    }


def recipe(
    vectors: Tensor, heldout: Tensor, settings: Settings, *, rate: float, checks: list[int], target: float
) -> list[dict]:
    """The held-out error after each number of steps of `checks`, until it is below the target."""
    params = settings.stage1.model_copy(update={"init": "uniform"})
    quantizer = VectorQuantizer.of(start_codes(vectors, settings.codebook.num_codes, params).to(vectors.device))
    optimizer = torch.optim.AdamW(quantizer.parameters(), lr=rate, weight_decay=params.weight_decay, fused=True)
    found = []
    for step, batch in enumerate(draw_vectors(vectors, params, 0), 1):
        loss = quantizer(batch.vectors).vq_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step in checks:
            codes = quantizer.codebook.detach()
            error = normalised_error(heldout, codes, vectors)
            usage = codebook_statistics(lloyd_pass(heldout, codes).counts).usage
            found.append({"steps": step, "heldout_error": error, "usage": usage})
            print(f"lr {rate}: {found[-1]}", flush=True)
            if error <= target or step == checks[-1]:
                break
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--all-vectors", action="store_true", help="no cap per shape")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.005, 0.05])
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    device = torch.device(options.device)
    settings = load_settings(PARAMS_FILE)
    settings = settings.model_copy(update={"codebook": settings.codebook.model_copy(update={"size": options.size})})
    cap = None if options.all_vectors else settings.stage1.max_vectors_per_view
    vectors, heldout = load_latents(device, cap, settings.stage1.seed)

    network, found = measure_recipe(settings, device), ours(vectors, heldout, settings)
    seconds = found["seconds_of_kmeans"] + found["seconds_of_encoding"]
    per_step = network["ms_per_step_one_shape"] / 1000
    checks = [
        int(times * seconds / per_step) for times in sorted({1, 2, 5, 10, 20, options.times}) if times <= options.times
    ]
    batch = round(network["latents_of_one_shape"])
    settings = settings.model_copy(update={"stage1": settings.stage1.model_copy(update={"batch_size": batch})})
    runs = {
        str(rate): recipe(vectors, heldout, settings, rate=rate, checks=checks, target=found["heldout_error"])
        for rate in options.rates
    }
    for run in runs.values():
        for row in run:
            row["times_our_seconds"] = row["steps"] * per_step / seconds
    result = {
        "command": " ".join(["python", "-m", "benchmarks.codebook_recipe", *sys.argv[1:]]),
        "rates": options.rates,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU, two cores",
        "torch": torch.__version__,
        "size": options.size,
        "latents_a_step": batch,
        "ours": found,
        "network": network,
        "recipe_by_lr": runs,
    }
    options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
