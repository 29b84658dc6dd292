"""A step of stage 2 in the small setting on a CPU: decoding everything, and what the loss reads.

    python -m benchmarks.training_step_cpu [--output FILE]        (after make repro, nothing beside it; a minute)

The first batch of stage 2 in params.yaml, as the stage has it. Variants take turns, so that noise meets all of them;
medians, and the median over rounds of how much faster than the first a variant was. All take the same loss.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks import straightforward
from benchmarks.training_step import Variant, loss_of
from model.vae import SDFTarget
from model.vqvae import VQVAE
from tasks.data.dataset import load_batches
from tasks.run import SDF, load_settings
from tasks.shards import open_shards
from tasks.stage2 import load_vqvae

ROUNDS, WARM_UP = 9, 1
VARIANTS = [
    Variant("whole decode", explicit_children=True, whole_decode=True),
    Variant("+ children from their parents", whole_decode=True),
    Variant("+ what the loss reads alone (as trained)"),
]


def step_of(variant: Variant, vqvae: VQVAE, loaded: SDFTarget) -> tuple[float, float]:
    """Seconds, and the loss."""
    target = loaded.to("cpu")
    target = SDFTarget(
        *(part.__class__(part.coords.clone(), part.feats) for part in (target.band, target.beyond))
    )  # a batch that no step has seen: nothing is known of its coordinates
    started = time.perf_counter()
    loss = loss_of(vqvae, target, variant).total
    loss.backward()
    nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
    return time.perf_counter() - started, float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    params = load_settings().stage2
    batch = next(load_batches(open_shards(SDF), params, start=0, device=torch.device("cpu")))
    networks = []
    for variant in VARIANTS:
        vqvae = load_vqvae()
        if variant.explicit_children:
            straightforward.explicit_children(vqvae.vae)
        networks.append(vqvae)
    rounds, losses = [], []
    for _ in range(WARM_UP + ROUNDS):
        seconds, losses = zip(
            *(step_of(*pair, batch.target) for pair in zip(VARIANTS, networks, strict=True)), strict=True
        )
        for vqvae in networks:
            vqvae.zero_grad()
        rounds.append(seconds)
    rounds = rounds[WARM_UP:]
    rows = [
        {
            "variant": variant.name,
            "seconds": round(statistics.median(column), 3),
            "times_faster": round(statistics.median(whole / own for whole, own in zip(first, column, strict=True)), 2),
            "loss": round(loss, 6),
        }
        for first in [[seconds[0] for seconds in rounds]]
        for variant, column, loss in zip(VARIANTS, zip(*rounds, strict=True), losses, strict=True)
    ]
    result = {
        "command": "python -m benchmarks.training_step_cpu",
        "device": f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "shapes": len(batch.names),
        "band_voxels": len(batch.target.band.grid),
        "rounds": ROUNDS,
        "steps": rows,
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
