"""A stage-2 step of the published network on a GPU: milliseconds and peak memory, from a straightforward port to ours.

    python -m benchmarks.training_step [--shards FOLDER] [--output FILE]        (on a machine with a GPU; two minutes)

One shape: the band of a sphere, radius 0.4 R, half-width 2 voxels, at R = 512 and 1024, and the first of the shards
that tasks.voxelize left in FOLDER. 512 channels, 4 blocks, 8192 x 64 codes, float16 autocast with loss scaling, AdamW.
A step is forward, loss, backward, clipping and update; the batch is on the device and new to the network. Rows keep
what the rows before them improved; all take the same loss at the same voxels, whose value stands in the row. Medians of
CUDA events; `host_ms` is until all is launched, `convolutions` the share of the GPU's time in convolution kernels.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import straightforward
from model.quantizer import VectorQuantizer
from model.sparse import SparseTensor, find_rows, from_arrays
from model.vae import SDFTarget, SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE, VQVAELoss, vqvae_loss

REPEATS, WARM_UP = 10, 4
CONVOLUTION_KERNELS = ("convolve", "gradient_kernel", "cumm", "subm_conv_indices", "tv::gemm", "implicit", "spconv")
OUTSIDE_SHARE = 0.125


class Variant(NamedTuple):
    name: str
    spconv: bool = False  # convolutions of spconv
    shared_rulebooks: bool = True  # of each grid, or one for each convolution
    explicit_children: bool = False
    plain_norms: bool = False
    whole_decode: bool = False  # of all children; the loss's voxels are then looked up
    made_ahead: bool = True  # what follows from coordinates, as the loader does it beside the step before
    recompute: bool = False


VARIANTS = [
    Variant("straightforward port", True, False, True, True, True, False),
    Variant("+ one rulebook a level", True, True, True, True, True, False),
    Variant("+ our convolutions", False, True, True, True, True, False),
    Variant("+ children from their parents", False, True, False, True, True, False),
    Variant("+ norm, SiLU and pooling fused", False, True, False, False, True, False),
    Variant("+ what the loss reads alone", False, True, False, False, False, False),
    Variant("+ coordinates made ahead (as trained)"),
    Variant("with recompute", recompute=True),
]


def sphere(resolution: int) -> SDFTarget:
    centres = np.arange(resolution) + 0.5 - resolution / 2
    parts = []
    for x, centre in enumerate(centres):
        distance = np.sqrt(centre**2 + centres[:, None] ** 2 + centres**2) - 0.4 * resolution
        y, z = np.nonzero(np.abs(distance) < 2)
        parts.append(np.column_stack([np.full(len(y), x), y, z, distance[y, z] / 2]))
    rows = np.concatenate(parts)
    coords = rows[:, :3].astype(np.int32)
    keys = np.unique(np.ravel_multi_index(tuple((coords // 8).T), (resolution // 8,) * 3))
    bricks = np.stack(np.unravel_index(keys, (resolution // 8,) * 3), 1)
    chosen = bricks[np.random.default_rng(0).random(len(bricks)) < OUTSIDE_SHARE]
    children = (chosen[:, None] * 8 + np.indices((8, 8, 8)).reshape(3, -1).T).reshape(-1, 3)
    distance = np.linalg.norm(children + 0.5 - resolution / 2, axis=1) - 0.4 * resolution
    beyond = np.abs(distance) >= 2
    return as_target(coords, rows[:, 3], children[beyond], np.sign(distance[beyond]), resolution)


def first_shape(folder: Path) -> tuple[str, SDFTarget]:
    from tasks.data.dataset import ShapeDataset, TrainingView, View  # Warp, which the sphere needs not
    from tasks.shards import open_shards

    shards = open_shards(folder)
    name = str(shards.index.index[0])
    dataset = ShapeDataset(shards, shape_voxels=2**31, outside_share=OUTSIDE_SHARE)
    return name, dataset[TrainingView(View(name, 0), seed=0)].unfold()


def as_target(coords: np.ndarray, sdf: np.ndarray, beyond: np.ndarray, signs: np.ndarray, resolution: int) -> SDFTarget:
    def tensor(coords: np.ndarray, values: np.ndarray) -> SparseTensor:
        return from_arrays(coords.astype(np.int32), values.astype(np.float32), extent=resolution)

    return SDFTarget(tensor(coords, sdf), tensor(beyond, signs))


def network() -> VQVAE:
    torch.manual_seed(0)
    vqvae = VQVAE(SparseSDFVAE(VAEConfig(512, 4, 64)), VectorQuantizer(8192, 64)).cuda()
    nn.init.normal_(vqvae.vae.encoder.out_layer.weight, std=0.04)  # zeros as published: every latent would be the same
    nn.init.normal_(vqvae.quantizer.codebook, std=0.3)
    return vqvae


def put_in_place(vqvae: VQVAE, variant: Variant) -> None:
    if variant.spconv:
        straightforward.spconv_convolutions(vqvae.vae, share_rulebooks=variant.shared_rulebooks)
    elif variant.explicit_children:
        straightforward.explicit_children(vqvae.vae)
    if variant.plain_norms:
        straightforward.plain_norms(vqvae.vae)
    if variant.recompute:
        vqvae.vae.recompute_activations()


def loss_of(vqvae: VQVAE, target: SDFTarget, variant: Variant) -> VQVAELoss:
    if variant.whole_decode:
        output = vqvae(target.band)
        wanted = torch.cat([target.band.coords, target.beyond.coords])
        rows, _ = find_rows(wanted, output.decoded.grid)
        output = output._replace(decoded=SparseTensor(wanted, output.decoded.feats.index_select(0, rows)))
    else:
        output = vqvae(target.band, target.plan)
    return vqvae_loss(output, target, recon="l1+l2", lambda_outside=0.1, lambda_vq=1, lambda_commitment=0.25)


def measure(loaded: SDFTarget, variant: Variant) -> dict[str, float | str]:
    vqvae = network()
    put_in_place(vqvae, variant)
    optimizer = torch.optim.AdamW(vqvae.parameters(), lr=1e-5, fused=True)
    scaler = torch.amp.GradScaler("cuda")

    def step(target: SDFTarget) -> torch.Tensor:
        with torch.autocast("cuda", torch.float16):
            loss = loss_of(vqvae, target, variant).total
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.detach()

    def new_batch() -> SDFTarget:
        target = loaded.to("cuda")  # a batch that no step has seen: nothing is known of its coordinates
        if variant.made_ahead:
            target.make_ahead()
        torch.cuda.synchronize()
        return target

    first_loss, times, hosts = 0.0, [], []
    for repeat in range(WARM_UP + REPEATS):
        if repeat == WARM_UP:
            torch.cuda.reset_peak_memory_stats()
        target = new_batch()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        started = time.perf_counter()
        start.record()
        loss = step(target)
        end.record()
        hosts.append(1000 * (time.perf_counter() - started))
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
        first_loss = first_loss or float(loss)
    peak = torch.cuda.max_memory_allocated()
    target = new_batch()
    total, convolutions = gpu_times(lambda: step(target))
    return {
        "variant": variant.name,
        "step_ms": round(statistics.median(times[WARM_UP:]), 1),
        "peak_gb": round(peak / 1e9, 2),
        "host_ms": round(statistics.median(hosts[WARM_UP:]), 1),
        "gpu_ms": round(total, 1),
        "convolutions": round(convolutions / total, 2),
        "band_voxels_per_second": round(len(loaded.band.grid) / statistics.median(times[WARM_UP:]) * 1000),
        "first_loss": round(first_loss, 5),
    }


def gpu_times(work: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds that the GPU worked, and of them in convolutions."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    kernels = [event for event in profiler.key_averages() if event.self_device_time_total > 0]
    times = {event.key: event.self_device_time_total / 1000 for event in kernels}
    convolutions = [key for key in times if any(word in key.lower() for word in CONVOLUTION_KERNELS)]
    return sum(times.values()), sum(times[key] for key in convolutions)


def planning_ms(loaded: SDFTarget) -> float:
    times = []
    for _ in range(6):
        target = loaded.to("cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        target.make_ahead()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    return round(statistics.median(times[1:]), 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    shapes = [("sphere, R = 512", sphere(512), VARIANTS)]
    if options.shards:
        shapes.append((*first_shape(options.shards), VARIANTS))
    shapes.append(("sphere, R = 1024", sphere(1024), VARIANTS[-2:]))
    result = {
        "command": " ".join(["python", "-m", "benchmarks.training_step", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name(),
    }
    result |= {"torch": torch.__version__, "shapes": []}
    for name, loaded, variants in shapes:
        latents = loaded.band.grid.pooled(3)
        shape = {
            "shape": name,
            "band_voxels": len(loaded.band.grid),
            "latents": len(latents),
            "voxels_of_whole_decode": 512 * len(latents),
            "voxels_the_loss_reads": len(loaded.band.grid) + len(loaded.beyond.grid),
            "made_ahead_ms": planning_ms(loaded),
            "steps": [],
        }
        result["shapes"].append(shape)
        for variant in variants:
            try:
                row = measure(loaded, variant)
            except torch.OutOfMemoryError as error:
                row = {"variant": variant.name, "error": str(error).splitlines()[0]}
            shape["steps"].append(row)
            print(name, json.dumps(row), flush=True)
            torch.cuda.empty_cache()
            options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
