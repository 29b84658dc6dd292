"""How near does the original recipe come to our codebook, which trains codes through the frozen network?

    .venv/bin/python -m benchmarks.codebook_recipe [--rates 0.005 0.05] [--json FILE]   (after make repro)
    .venv/bin/python -m benchmarks.codebook_recipe --size 8192 --all-vectors            (the published size, on a GPU)

The recipe starts from uniform(+-1/K) and takes one shape a step: encoder, quantizer, decoder, loss, backward, AdamW.
With the network frozen, only the vq term has a gradient for the codes, so that its steps are taken here on cached
latents, as many of a step as a shape has; what a step through the network takes is measured. Ours is k-means on
latents, all views encoded once by what the encode stage calls, both timed here. For each of --rates: the held-out error
after 1 to --times times our seconds, and when ours was reached, if it was.
"""

import time
from functools import cache
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks import command_line, conditions, timed, wait, write_json
from model.checkpoint import load_vae
from model.quantizer import ResidualQuantizer, codebook_statistics, lloyd_pass, normalised_error
from model.vae import SDFTarget, reconstruction_loss
from model.vqvae import VQVAE
from tasks.data import (
    choose_views,
    draw_vectors,
    encode_views,
    load_targets,
    read_vectors,
    training_batches,
)
from tasks.run import LATENTS, PARAMS_FILE, SDF, VAE, Settings, load_settings
from tasks.shards import open_shards
from tasks.stage1 import start_codes


def of_size(settings: Settings, num_codes: int) -> Settings:
    """The settings with a single level of so many codes."""
    section = settings.codebook.model_copy(update={"num_levels": 1, "num_codes": num_codes})
    return settings.model_copy(update={"codebook": section})


@cache
def load_latents(device: torch.device, cap: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """The distinct training vectors, at most `cap` of a view, and those of held-out shapes."""
    cached = read_vectors(LATENTS, "train", max_per_view=cap, seed=seed)
    heldout = read_vectors(LATENTS, "val", max_per_view=None, seed=0)
    return cached.to(device).unique(dim=0), heldout.to(device)


def measure_recipe(settings: Settings, device: torch.device) -> dict:
    """A step of stage 1 as the recipe has it: encoder, quantizer and decoder, the codes alone trained.

    Some steps are timed, and the time of settings.stage1.steps follows. On one shape, and on a batch of stage 2's: its
    time for each latent vector says what a step on as many vectors as ours would take.
    """
    vae = load_vae(VAE, device=device).requires_grad_(False)
    (size,) = settings.codebook.per_level
    quantizer = ResidualQuantizer([size], vae.config.latent_channels).to(device)
    nn.init.uniform_(quantizer.codebooks[0], -1 / size, 1 / size)
    network = VQVAE(vae, quantizer)
    shards = open_shards(SDF)
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
    codes = start_codes(vectors, settings.codebook.per_level[0], settings.stage1).to(vectors.device)
    wait(vectors.device)
    seconds = time.perf_counter() - started
    return {
        "seconds_of_encoding": encoding,
        "seconds_of_kmeans": seconds,
        "heldout_error": normalised_error(heldout, ResidualQuantizer.of([codes]), reference=heldout),
    }


def recipe(
    vectors: Tensor, heldout: Tensor, settings: Settings, *, rate: float, checks: list[int], target: float
) -> list[dict]:
    """The held-out error after each number of steps of `checks`, until it is below the target."""
    params = settings.stage1.model_copy(update={"init": "uniform"})
    start = start_codes(vectors, settings.codebook.per_level[0], params).to(vectors.device)
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


def main() -> None:
    parser = command_line(__doc__, "codebook_recipe.json")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=1024, help="codes (%(default)s)")
    parser.add_argument("--all-vectors", action="store_true", help="no cap per shape")
    parser.add_argument("--times", type=int, default=50, help="how many times our seconds to go on (%(default)s)")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.0005, 0.005, 0.05], help="learning rates")
    options = parser.parse_args()
    device = torch.device(options.device)
    settings = of_size(load_settings(PARAMS_FILE), options.size)
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
    result = conditions(device) | {
        "rates": options.rates,
        "size": options.size,
        "latents_a_step": batch,
        "ours": found,
        "network": network,
        "recipe_by_lr": runs,
    }
    write_json(options.json, result)


if __name__ == "__main__":
    main()
