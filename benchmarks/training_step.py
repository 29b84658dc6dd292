"""A stage-2 step of the published network on a GPU: milliseconds and peak memory, decoding all or what the loss reads.

    python benchmarks/training_step.py [OUT.json]        (on a machine with a GPU; about a minute)

One shape: the band of a sphere, radius 0.4 R, half-width 2 voxels. 512 channels, 4 blocks, 8192 x 64 codes, float16
autocast with loss scaling, AdamW. A step is forward, loss, backward, clipping and update, neighbour searches included;
the batch is on the device and planned, as the loader does it beside the step before. Medians of CUDA events.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.losses import SDFTarget  # the root comes first, so that this runs as a plain script
from model.quantizer import VectorQuantizer
from model.sparse import SparseTensor, from_arrays
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE, vqvae_loss

RUNS = [(512, 1.0), (512, 0.125), (1024, 0.125)]  # resolution, outside_share: 1 reads, and so decodes, everything
REPEATS, WARM_UP = 10, 3


def sphere(resolution: int, outside_share: float) -> SDFTarget:
    centres = np.arange(resolution) + 0.5 - resolution / 2
    parts = []
    for x, centre in enumerate(centres):
        distance = np.sqrt(centre**2 + centres[:, None] ** 2 + centres**2) - 0.4 * resolution
        y, z = np.nonzero(np.abs(distance) < 2)
        parts.append(np.column_stack([np.full(len(y), x), y, z, distance[y, z] / 2]))
    rows = np.concatenate(parts)
    coords, sdf = rows[:, :3].astype(np.int32), rows[:, 3].astype(np.float32)
    keys = np.unique(np.ravel_multi_index(tuple((coords // 8).T), (resolution // 8,) * 3))
    bricks = np.stack(np.unravel_index(keys, (resolution // 8,) * 3), 1)
    chosen = bricks[np.random.default_rng(0).random(len(bricks)) < outside_share]
    children = (chosen[:, None] * 8 + np.indices((8, 8, 8)).reshape(3, -1).T).reshape(-1, 3)
    distance = np.linalg.norm(children + 0.5 - resolution / 2, axis=1) - 0.4 * resolution
    beyond = np.abs(distance) >= 2

    def tensor(coords: np.ndarray, values: np.ndarray) -> SparseTensor:
        return from_arrays(coords.astype(np.int32), values.astype(np.float32), extent=resolution)

    return SDFTarget(tensor(coords, sdf), tensor(children[beyond], np.sign(distance[beyond])))


def measure(resolution: int, outside_share: float) -> dict[str, float | int]:
    torch.manual_seed(0)
    vqvae = VQVAE(SparseSDFVAE(VAEConfig(512, 4, 64)), VectorQuantizer(8192, 64)).cuda()
    nn.init.normal_(vqvae.vae.encoder.out_layer.weight, std=0.04)  # zeros as published: every latent would be the same
    nn.init.normal_(vqvae.quantizer.codebook, std=0.3)
    optimizer = torch.optim.AdamW(vqvae.parameters(), lr=1e-5, fused=True)
    scaler = torch.amp.GradScaler("cuda")
    loaded = sphere(resolution, outside_share)
    steps, plans = [], []
    for repeat in range(WARM_UP + REPEATS):
        if repeat == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        target = loaded.to("cuda")  # a batch that no step has seen: no neighbours known
        torch.cuda.synchronize()
        started = time.perf_counter()
        plan = target.plan
        torch.cuda.synchronize()
        plans.append(1000 * (time.perf_counter() - started))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        with torch.autocast("cuda", torch.float16):
            losses = vqvae_loss(
                vqvae(target.band, plan), target, recon="l1+l2", lambda_outside=0.1, lambda_vq=1, lambda_commitment=0.25
            )
        scaler.scale(losses.total).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        end.record()
        torch.cuda.synchronize()
        steps.append(start.elapsed_time(end))
    return {
        "resolution": resolution,
        "outside_share": outside_share,
        "band_voxels": len(loaded.band.grid),
        "latents": len(loaded.band.grid.pooled(3)),
        "decoded_voxels": len(plan.subdivisions[-1].children),
        "step_ms": round(statistics.median(steps[WARM_UP:]), 1),
        "plan_ms": round(statistics.median(plans[WARM_UP:]), 1),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def main() -> None:
    rows = []
    for run in RUNS:
        rows.append(measure(*run))
        print(json.dumps(rows[-1]), flush=True)
        torch.cuda.empty_cache()
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".json")
    result = {
        "command": "python benchmarks/training_step.py",
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "steps": rows,
    }
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
