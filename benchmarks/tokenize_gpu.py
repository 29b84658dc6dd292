"""What do encode and decode of the tokenizer cost on a GPU at the published size, in milliseconds and peak memory?

    .venv/bin/python -m benchmarks.tokenize_gpu [--meshes FOLDER] [--num 5] [--json FILE]        (on a GPU)

512 channels, 4 blocks, 8192 x 64 codes, resolution 512, float32. Weights are random, which changes no time but that of
marching cubes: it gets the true field in place of what such a decoder makes of it. Shapes: the shell of a sphere of
radius 0.4 R, and meshes of the folder, evenly from the largest file to the smallest. Medians of wall-clock times, with
results on the host.

Before that, with the shipped VAE at resolution 64: are tokens on the GPU those of the CPU, and those of a batch those
of a shape alone; where they differ, how near to a tie is the latent; how far apart are the decoded fields.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
import trimesh
import warp as wp
from torch import nn

from benchmarks import ROOT, command_line, conditions, write_json
from model.bricks import BRICK_SIZE
from model.checkpoint import load_vae
from model.errors import InputError
from model.meshes import find_meshes, load_mesh
from model.quantizer import ResidualQuantizer
from model.sdf import SparseSDF, voxelize
from model.sparse import Grid, SparseTensor, find_rows, from_arrays
from model.tokenizer import ShapeTokenizer, decoded_surface
from model.tokens import Tokens
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE

T = TypeVar("T")
RESOLUTION = 512
SMALL_RESOLUTION, SMALL_CODEBOOK = 64, 1024
REPEATS, WARM_UP = 7, 2
MAX_SECONDS = 10  # of one measurement; those that take longer have fewer repeats


def main() -> None:
    parser = command_line(__doc__, "tokenize_gpu.json")
    parser.add_argument("--meshes", type=Path, help="a folder of mesh files")
    parser.add_argument("--num", type=int, default=5, help="meshes of the folder to take (%(default)s)")
    parser.add_argument("--resolution", type=int, default=RESOLUTION, help="(%(default)s)")
    parser.add_argument(
        "--one-core", action="store_true", help="voxelize the meshes on one core too: minutes, for some"
    )
    parser.add_argument("--device", default="cuda", help="cpu, to try the script out (%(default)s)")
    options = parser.parse_args()

    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device(options.device)
    meshes = meshes_of(options.meshes, options.num) if options.meshes else {}
    result = conditions(device) | {
        "same_tokens": compare_devices(primitives() | meshes, device),
        "resolution": options.resolution,
        "shapes": {},
    }
    print(json.dumps(result["same_tokens"]), flush=True)
    tokenizer = published_tokenizer(options.resolution, device)
    shapes = {"sphere": sphere_shell(options.resolution)} | meshes
    for name, shape in shapes.items():
        try:
            result["shapes"][name] = measure(tokenizer, shape, one_core=options.one_core)
        except InputError as error:
            result["shapes"][name] = {"unusable": str(error)}
        print(json.dumps({"shape": name} | result["shapes"][name]), flush=True)
        write_json(options.json, result)  # each as it comes: the machine may go


def meshes_of(folder: Path, number: int) -> dict[str, trimesh.Trimesh]:
    """By name, evenly from the largest file to the smallest."""
    files = sorted(find_meshes(folder).items(), key=lambda item: -item[1].stat().st_size)
    chosen = np.unique(np.linspace(0, len(files) - 1, min(number, len(files))).round().astype(int))
    meshes = {}
    for place in chosen:
        name, file = files[place]
        mesh = load_mesh(file)
        meshes[name] = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    return meshes


def primitives() -> dict[str, trimesh.Trimesh]:
    creation = trimesh.creation
    return {
        "ball": creation.icosphere(subdivisions=4),
        "can": creation.cylinder(radius=0.4, height=1.5),
        "plate": creation.box((1.8, 1.2, 0.3)),
        "ring": creation.torus(0.7, 0.25),
    }


# --- the same on every device ----------------------------------------------------------------------------------------


def compare_devices(meshes: dict[str, trimesh.Trimesh], device: torch.device) -> dict[str, Any]:
    """A tokenizer of the shipped VAE on the CPU and on `device`."""
    here, there = small_tokenizer(torch.device("cpu")), small_tokenizer(device)
    with torch.no_grad():  # codes among the latents
        latents = torch.cat([mean_latents(here, here.voxelize(mesh)) for mesh in primitives().values()])
        torch.manual_seed(0)
        codes = latents[torch.randint(len(latents), (SMALL_CODEBOOK,))]
        codes += 0.3 * latents.std() * torch.randn(codes.shape)
        for tokenizer in (here, there):
            tokenizer.vqvae.quantizer.codebooks[0].data.copy_(codes)
    assert here.fingerprint == there.fingerprint

    num_tokens = differing = other_grids = 0
    margins, field_errors, sign_changes = [0.0], [], 0
    grids, unusable = {}, []
    for name, mesh in meshes.items():
        try:
            grids[name] = here.voxelize(mesh)
        except InputError:  # too thin for this resolution
            unusable.append(name)
    expected = {name: here.encode(grid) for name, grid in grids.items()}
    for name, grid in grids.items():
        got = there.encode(meshes[name])
        num_tokens += len(got)
        if not np.array_equal(got.coords, expected[name].coords):
            other_grids += 1
            continue
        wrong = got.indices != expected[name].indices
        differing += int(wrong.sum())
        margins += tie_margins(here, grid, wrong).tolist()
        ours, theirs = decoded_field(here, expected[name]), decoded_field(there, expected[name])
        field_errors.append(float((ours - theirs).abs().max()))
        sign_changes += int(((ours < 0) != (theirs < 0)).sum())
    alone = [there.encode(grid) for grid in grids.values()]
    batch = there.encode_batch(list(grids.values()))
    return {
        "num_shapes": len(grids),
        "unusable_shapes": unusable,
        "num_tokens": num_tokens,
        "shapes_with_other_voxels": other_grids,
        "codes_other_than_on_the_cpu": differing,
        "largest_margin_of_those": float(f"{max(margins):.2g}"),  # of a tie: see tie_margins
        "codes_other_in_a_batch": sum(int((a.indices != b.indices).sum()) for a, b in zip(alone, batch, strict=True)),
        "codes_other_when_repeated": sum(
            int((a.indices != there.encode(grid).indices).sum()) for a, grid in zip(alone, grids.values(), strict=True)
        ),
        "decoded_largest_difference": float(f"{max(field_errors):.2g}"),  # SDF, in units of the truncation
        "decoded_sign_changes": sign_changes,
    }


def small_tokenizer(device: torch.device) -> ShapeTokenizer:
    vae = load_vae(ROOT / "pretrained" / "small_vae.safetensors")
    vqvae = VQVAE(vae, ResidualQuantizer([SMALL_CODEBOOK], vae.config.latent_channels)).to(device)
    return ShapeTokenizer(
        vqvae, resolution=SMALL_RESOLUTION, truncation_voxels=2.0, mode="auto", max_bad_flip_ratio=0.4
    )


def mean_latents(tokenizer: ShapeTokenizer, grid: SparseSDF) -> torch.Tensor:
    """In C order, as tokens are."""
    x = from_arrays(grid.coords, grid.sdf, extent=grid.resolution).to(tokenizer.device)
    z_e = tokenizer.vqvae.encode(x)
    return z_e.feats[z_e.grid.keys.argsort()]


@torch.no_grad()
def tie_margins(tokenizer: ShapeTokenizer, grid: SparseSDF, rows: np.ndarray) -> torch.Tensor:
    """How much farther the second nearest code of a latent is than the nearest, over the distance to the nearest."""
    z_e = mean_latents(tokenizer, grid)[torch.from_numpy(rows)].double()
    nearest = torch.cdist(z_e, tokenizer.vqvae.quantizer.codebooks[0].double()).topk(2, largest=False).values
    return nearest[:, 1] / nearest[:, 0].clamp(min=1e-12) - 1


@torch.no_grad()
def decoded_field(tokenizer: ShapeTokenizer, tokens: Tokens) -> torch.Tensor:
    return tokenizer.vqvae.decode_indices(*as_indices(tokenizer, tokens)).feats.cpu()


def as_indices(tokenizer: ShapeTokenizer, tokens: Tokens) -> tuple[torch.Tensor, Grid]:
    coords = torch.from_numpy(np.pad(tokens.coords, ((0, 0), (1, 0))).astype(np.int32)).to(tokenizer.device)
    grid = Grid(coords, num_shapes=1, extent=tokenizer.resolution // BRICK_SIZE)
    return torch.from_numpy(tokens.indices).to(tokenizer.device), grid


# --- the published size ----------------------------------------------------------------------------------------------


@torch.no_grad()
def published_tokenizer(resolution: int, device: torch.device) -> ShapeTokenizer:
    torch.manual_seed(0)
    vqvae = VQVAE(SparseSDFVAE(VAEConfig(512, 4, 64)), ResidualQuantizer([8192], 64))
    nn.init.normal_(vqvae.vae.encoder.out_layer.weight, std=0.04)  # zeros as published: every latent would be the same
    nn.init.normal_(vqvae.quantizer.codebooks[0], std=0.3)
    return ShapeTokenizer(
        vqvae.to(device), resolution=resolution, truncation_voxels=2.0, mode="auto", max_bad_flip_ratio=0.03
    )


def sphere_shell(resolution: int) -> SparseSDF:
    """Analytic: the band of a sphere of radius 0.4 R, half-width 2 voxels."""

    def distance(voxels: np.ndarray) -> np.ndarray:
        return np.linalg.norm(voxels + 0.5 - resolution / 2, axis=-1) - 0.4 * resolution

    side = resolution // BRICK_SIZE
    cells = np.stack(np.unravel_index(np.arange(side**3), (side,) * 3), 1)
    cells = cells[
        np.abs(distance(cells * 8.0 + 3.5)) < 8.1
    ]  # the band's 2, and 6.1 from a brick's centre to its corner
    voxels = cells[:, None] * 8 + np.stack(np.unravel_index(np.arange(512), (8, 8, 8)), 1)
    away = distance(voxels)  # [num_cells, 512]
    occupied = (np.abs(away) < 2).any(1)
    cells, voxels, away = cells[occupied], voxels[occupied], away[occupied]
    band = np.abs(away) < 2
    return SparseSDF(
        coords=voxels[band].astype(np.int32),
        sdf=(away[band] / 2).astype(np.float32),
        resolution=resolution,
        truncation_voxels=2.0,
        center=np.zeros(3),
        scale=1.0,
        brick_coords=cells.astype(np.int32),
        brick_inside=(away < 0).reshape(-1, 8, 8, 8),
        bad_flip_ratio=0.0,
    )


def measure(tokenizer: ShapeTokenizer, shape: trimesh.Trimesh | SparseSDF, *, one_core: bool) -> dict[str, Any]:
    """Encode begins at the triangles of a mesh, or at the voxels of a grid; decode ends with a mesh on the host."""
    on_gpu = tokenizer.device.type == "cuda"
    grid = tokenizer.voxelize(shape)
    figures: dict[str, Any] = {"band_voxels": len(grid.coords)}
    reset_peaks(tokenizer.device)
    tokens, encoding = timed(lambda: tokenizer.encode(shape))
    figures |= {"tokens": len(tokens), "encode_ms": encoding}
    if isinstance(shape, trimesh.Trimesh):
        figures |= {
            "faces": len(shape.faces),
            "mode": grid.mode,
            "bad_flip_ratio": round(grid.bad_flip_ratio, 4),
            "encode_voxelize_ms": timed(lambda: tokenizer.voxelize(shape))[1],
            "encode_network_ms": timed(lambda: tokenizer.encode(grid))[1],
        }
    figures["encode_peak_gb"] = peak_gb(tokenizer.device)
    if one_core and isinstance(shape, trimesh.Trimesh):
        options = tokenizer.grid_options
        figures["voxelize_on_one_core_ms"] = timed(lambda: voxelize(shape.vertices, shape.faces, **options))[1]

    reset_peaks(tokenizer.device)
    network = tokenizer.vqvae.decode_indices
    with torch.no_grad():
        decoded, decoding = timed(lambda: network(*as_indices(tokenizer, tokens)))
        latents = as_indices(tokenizer, tokens)[1]
        truth = true_field(decoded, latents, grid).feats

        def decode_truth(indices: torch.Tensor, latents: Grid) -> SparseTensor:
            return network(indices, latents).with_feats(truth)

        with patch.object(tokenizer.vqvae, "decode_indices", decode_truth):
            mesh, whole = timed(lambda: tokenizer.decode(tokens))
        figures |= {
            "decoded_voxels": len(decoded.grid),
            "decode_ms": whole,
            "decode_network_ms": decoding,
            "decode_surface_ms": timed(
                lambda: decoded_surface(decoded.with_feats(truth), latents, resolution=grid.resolution)
            )[1],
            "decoded_faces": len(mesh.faces),
            "decode_peak_gb": peak_gb(tokenizer.device),
        }
        if on_gpu:
            half, figures["decode_network_float16_ms"] = timed(lambda: in_half(network, tokenizer, tokens))
            figures["float16_largest_difference"] = round(float((half.feats - decoded.feats).abs().max()), 4)
    return figures


def true_field(decoded: SparseTensor, latents: Grid, grid: SparseSDF) -> SparseTensor:
    """What a perfect decoder would have made: the stored values of the band, +-1 elsewhere."""
    values = np.where(grid.brick_inside, np.float32(-1), np.float32(1))
    values[grid.brick_band] = grid.sdf
    bricks = decoded.coords.clone()
    bricks[:, 1:] //= BRICK_SIZE
    brick, _ = find_rows(bricks, latents)  # bricks of a SparseSDF are in C order, as tokens are
    x, y, z = (decoded.coords[:, 1:] % BRICK_SIZE).long().unbind(1)
    return decoded.with_feats(torch.from_numpy(values).to(brick.device)[brick, x, y, z][:, None])


def in_half(
    network: Callable[[torch.Tensor, Grid], SparseTensor], tokenizer: ShapeTokenizer, tokens: Tokens
) -> SparseTensor:
    with torch.autocast(tokenizer.device.type, torch.float16):
        return network(*as_indices(tokenizer, tokens))


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """The result and the median of its milliseconds, without the first ones where there is time for more.

    The very first, in which kernels are compiled, does not count as time.
    """
    milliseconds: list[float] = []
    while len(milliseconds) < WARM_UP + REPEATS and sum(milliseconds[1:]) < 1000 * MAX_SECONDS:
        result = None  # the last one's memory is free again
        synchronize()
        start = time.perf_counter()
        result = work()
        synchronize()
        milliseconds.append(1000 * (time.perf_counter() - start))
    assert result is not None
    return result, round(statistics.median(milliseconds[WARM_UP:] or milliseconds[-1:]), 1)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        wp.synchronize()


def reset_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    """Of torch, weights included, plus the most that Warp's kernels had so far: never less than the true peak."""
    if device.type != "cuda":
        return None
    return round((torch.cuda.max_memory_allocated() + wp.get_mempool_used_mem_high(str(device))) / 1e9, 2)


if __name__ == "__main__":
    main()
