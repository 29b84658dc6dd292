"""What does a step of stage 2 take, from a straightforward port to spconv to the step as trained?

    .venv/bin/python -m benchmarks.training_step [--shards FOLDER] [--json FILE]          (on a GPU; two minutes)
    GOMP_SPINCOUNT=1000 .venv/bin/python -m benchmarks.training_step --device cpu         (after make repro; a minute)

On a GPU the published network, 512 channels, 4 blocks, 8192 x 64 codes, float16 autocast with loss scaling, AdamW, on
one shape: the band of a sphere, radius 0.4 R, half-width 2 voxels, at R = 512 and 1024, and the first of the shards
that tasks.voxelize left in FOLDER. A step is forward, loss, backward, clipping and update; the batch is on the device
and new to the network. Rows keep what the rows before them improved; all take the same loss at the same voxels, whose
value stands in the row. Medians of CUDA events; `host_ms` is until all is launched, `convolutions` the share of the
GPU's time in convolution kernels.

On a CPU, with nothing beside it, the network and the first batch of stage 2 in params.yaml, as the stage has them: a
step is forward, loss, backward and clipping. Variants take turns, so that noise meets all of them; medians, and the
median over rounds of how much faster than the first a variant was.
"""

import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from spconv.pytorch import SparseConvTensor
from spconv.pytorch import SubMConv3d as SpconvSubMConv3d
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks import FOLDER, command_line, conditions, write_json
from model.quantizer import ResidualQuantizer
from model.sparse import ChildConv3d, GroupNormSiLU, SparseTensor, Subdivision, SubMConv3d, find_rows, from_arrays
from model.sparse.tensor import mean_of_children
from model.vae import SDFTarget, SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE, VQVAELoss, vqvae_loss

REPEATS, WARM_UP = 10, 4
CPU_ROUNDS, CPU_WARM_UP = 9, 1
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
CPU_VARIANTS = [
    Variant("whole decode", explicit_children=True, whole_decode=True),
    Variant("+ children from their parents", whole_decode=True),
    Variant("+ what the loss reads alone (as trained)"),
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
    dataset = ShapeDataset(shards.resolution, shape_voxels=2**31, outside_share=OUTSIDE_SHARE)
    return name, dataset[shards.locate(name), TrainingView(View(name, 0), seed=0)].unfold()


def as_target(coords: np.ndarray, sdf: np.ndarray, beyond: np.ndarray, signs: np.ndarray, resolution: int) -> SDFTarget:
    def tensor(coords: np.ndarray, values: np.ndarray) -> SparseTensor:
        return from_arrays(coords.astype(np.int32), values.astype(np.float32), extent=resolution)

    return SDFTarget(tensor(coords, sdf), tensor(beyond, signs))


def network() -> VQVAE:
    torch.manual_seed(0)
    vqvae = VQVAE(SparseSDFVAE(VAEConfig(512, 4, 64)), ResidualQuantizer([8192], 64)).cuda()
    nn.init.normal_(vqvae.vae.encoder.out_layer.weight, std=0.04)  # zeros as published: every latent would be the same
    nn.init.normal_(vqvae.quantizer.codebooks[0], std=0.3)
    return vqvae


# --- pieces of the network as a straightforward port has them; parameters keep their names and values


def spconv_convolutions(vae: SparseSDFVAE, *, share_rulebooks: bool) -> None:
    """spconv's own module in place of every convolution; a rulebook for each, or one for each grid."""
    for module in vae.modules():
        if isinstance(module, SubMConv3d):
            theirs = SpconvSubMConv3d(module.weight.shape[4], module.weight.shape[0], 3, bias=True, indice_key="grid")
            theirs.weight, theirs.bias = module.weight, module.bias
            call = partial(_spconv, [theirs], share_rulebooks)
            module.forward = partial(_on_children, call) if isinstance(module, ChildConv3d) else call  # type: ignore[method-assign]


def _spconv(
    theirs: list[SpconvSubMConv3d], share: bool, x: SparseTensor, num_outputs: int | None = None
) -> SparseTensor:
    assert num_outputs in (None, len(x.grid))
    rulebook = x.grid.__dict__.setdefault("rulebook", {}) if share else {}
    shape = [x.grid.extent] * 3
    result = theirs[0](SparseConvTensor(x.feats, x.coords, shape, x.grid.num_shapes, indice_dict=rulebook))
    return x.with_feats(result.features)


def explicit_children(vae: SparseSDFVAE) -> None:
    """Children made with their parents' features, then convolved as any other voxels."""
    for module in vae.modules():
        if isinstance(module, ChildConv3d):
            module.forward = partial(_on_children, partial(SubMConv3d.forward, module))  # type: ignore[method-assign]


def _on_children(convolve: Callable[[SparseTensor], SparseTensor], x: SparseTensor, step: Subdivision) -> SparseTensor:
    return convolve(SparseTensor.on(step.fine, x.feats.repeat_interleave(8, 0)))


def plain_norms(vae: SparseSDFVAE) -> None:
    """Torch's group norm of one shape, SiLU and pooling one after the other, the norm in float32."""
    for module in vae.modules():
        if isinstance(module, GroupNormSiLU):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]
            module.forward_pooled = partial(_norm_pooled, module)  # type: ignore[method-assign]


def _norm(module: GroupNormSiLU, x: SparseTensor) -> SparseTensor:
    assert x.grid.num_shapes == 1
    normed = F.group_norm(x.feats.float().T[None], module.num_groups, module.weight, module.bias, module.eps)[0].T
    return x.with_feats(F.silu(normed.to(x.feats.dtype)))


def _norm_pooled(module: GroupNormSiLU, x: SparseTensor) -> tuple[SparseTensor, SparseTensor]:
    normed, plain = (
        mean_of_children(part.feats, x.grid.pooling.children, x.grid.pooling.divisor) for part in (_norm(module, x), x)
    )
    return SparseTensor.on(x.grid.pooling.coarse, normed), SparseTensor.on(x.grid.pooling.coarse, plain)


# --- one step


def put_in_place(vqvae: VQVAE, variant: Variant) -> None:
    if variant.spconv:
        spconv_convolutions(vqvae.vae, share_rulebooks=variant.shared_rulebooks)
    elif variant.explicit_children:
        explicit_children(vqvae.vae)
    if variant.plain_norms:
        plain_norms(vqvae.vae)
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


def on_gpu(shards: Path | None, out: Path) -> None:
    """Rows are written as they come."""
    shapes = [("sphere, R = 512", sphere(512), VARIANTS)]
    if shards:
        shapes.append((*first_shape(shards), VARIANTS))
    shapes.append(("sphere, R = 1024", sphere(1024), VARIANTS[-2:]))
    result = conditions(torch.device("cuda")) | {"shapes": []}
    for name, loaded, variants in shapes:
        latents = loaded.band.grid.pooled(3)
        shape: dict[str, Any] = {
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
            write_json(out, result)


# --- on a CPU


def step_on_cpu(variant: Variant, vqvae: VQVAE, loaded: SDFTarget) -> tuple[float, float]:
    """Seconds, and the loss."""
    target = SDFTarget(
        *(part.__class__(part.coords.clone(), part.feats) for part in (loaded.band, loaded.beyond))
    )  # a batch that no step has seen: nothing is known of its coordinates
    started = time.perf_counter()
    loss = loss_of(vqvae, target, variant).total
    loss.backward()
    nn.utils.clip_grad_norm_(vqvae.parameters(), 1.0)
    return time.perf_counter() - started, float(loss.detach())


def on_cpu(shards: Path | None, out: Path) -> None:
    from tasks.data import training_batches
    from tasks.run import load_settings, paths
    from tasks.shards import open_shards
    from tasks.stage2 import start_of_stage2

    device = torch.device("cpu")
    settings = load_settings()
    batch = next(training_batches(open_shards(shards or paths.SDF), settings.stage2, device)(0))
    networks = []
    for variant in CPU_VARIANTS:
        vqvae = start_of_stage2(settings.codebook)
        put_in_place(vqvae, variant)
        networks.append(vqvae)
    rounds: list[list[float]] = []
    losses: list[float] = []
    for _ in range(CPU_WARM_UP + CPU_ROUNDS):
        steps = [step_on_cpu(*pair, batch.target) for pair in zip(CPU_VARIANTS, networks, strict=True)]
        for vqvae in networks:
            vqvae.zero_grad()
        rounds.append([seconds for seconds, _ in steps])
        losses = [loss for _, loss in steps]
    rounds = rounds[CPU_WARM_UP:]
    result = conditions(device) | {
        "threads": torch.get_num_threads(),
        "shapes": len(batch.names),
        "band_voxels": len(batch.target.band.grid),
        "rounds": CPU_ROUNDS,
        "steps": [
            {
                "variant": variant.name,
                "seconds": round(statistics.median(seconds[i] for seconds in rounds), 3),
                "times_faster": round(statistics.median(seconds[0] / seconds[i] for seconds in rounds), 2),
                "loss": round(losses[i], 6),
            }
            for i, variant in enumerate(CPU_VARIANTS)
        ],
    }
    write_json(out, result)
    print(json.dumps(result, indent=2))


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="of tasks.voxelize (on a CPU data/sdf)")
    names = "benchmarks/training_step.json, on a CPU training_step_cpu.json"
    parser.add_argument("--json", "--output", type=Path, metavar="FILE", help=f"where the result goes ({names})")
    options = parser.parse_args()
    if options.device == "cuda":
        on_gpu(options.shards, options.json or FOLDER / "training_step.json")
    else:
        on_cpu(options.shards, options.json or FOLDER / "training_step_cpu.json")


if __name__ == "__main__":
    main()
