"""Does the tokenizer keep what it promises: the same shape, the same tokens; the same tokens, the same mesh?

    .venv/bin/python -m benchmarks.tokens [--meshes FOLDER] [--num 100] [--json FILE]        (after make repro)
    .venv/bin/python -m benchmarks.tokens codec --tokenizer pretrained/tokenizer_128 --meshes FOLDER

On meshes of a folder (drawn by --seed): do all give the same tokens for 1 and 2 threads, alone and in batches of 4, and
from the tokenizer saved and loaded; does the flat sequence give the mesh back bit for bit; how long is it; how near to
a tie are the codes; what does a mesh cost. `codec`: bits a shape and CD-L1 of the tokens, of all levels and of the
first alone, beside Draco's (https://google.github.io/draco, compression level 10) on the same meshes in the same cube,
at several bits a coordinate; and a picture beside the JSON.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import DracoPy
import matplotlib.pyplot as plt
import numpy as np
import torch
import trimesh

from benchmarks import FOLDER, command_line, conditions, write_json
from model.errors import InputError
from model.meshes import find_meshes, load_mesh
from model.metrics import Truth
from model.progress import track
from model.quantizer import ResidualQuantizer
from model.sdf import SparseSDF, Surface, normalised_surface
from model.sparse import from_arrays
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens, Vocabulary
from model.vqvae import VQVAE

T = TypeVar("T")
JSON_NAMES = {"promises": "tokens.json", "codec": "tokens_codec.json"}
BATCH_SIZE = 4
NUM_POINTS = 100_000  # samples of a surface
DRACO_BITS = (5, 6, 7, 8, 10, 12)  # of a coordinate


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("what", choices=JSON_NAMES, nargs="?", default="promises")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the result goes (benchmarks/tokens.json, of codec tokens_codec.json)",
    )
    parser.add_argument("--meshes", type=Path, default=Path("data/meshes"))
    parser.add_argument("--tokenizer", default="artifacts/tokenizer")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.json = options.json or FOLDER / JSON_NAMES[options.what]

    tokenizer = ShapeTokenizer.from_pretrained(options.tokenizer)
    meshes = list(usable_meshes(options, tokenizer))
    figures = codec(options, tokenizer, meshes) if options.what == "codec" else promises(options, tokenizer, meshes)
    write_json(options.json, figures)
    print(json.dumps(figures, indent=2))


def promises(options: argparse.Namespace, tokenizer: ShapeTokenizer, meshes: list[trimesh.Trimesh]) -> dict[str, Any]:
    tokenizer.reconstruct(meshes[0])  # compiles kernels
    tokens, encode_seconds = timed(tokenizer.encode, meshes)
    grids = [tokenizer.voxelize(mesh) for mesh in meshes]
    return conditions(tokenizer.device) | {
        "meshes": str(options.meshes.name),
        "num_meshes": len(meshes),
        "num_codes": sum(map(len, tokens)),
        "threads": torch.get_num_threads(),
        "encode_seconds": spread(encode_seconds),
        "encode_seconds_of_grids": spread(timed(tokenizer.encode, grids)[1]),  # without voxelizing
        "differing_codes": differing_codes(tokenizer, grids, tokens),
        "margin": margins(tokenizer, grids),
        **sequences(tokenizer, tokens),
    }


def usable_meshes(options: argparse.Namespace, tokenizer: ShapeTokenizer) -> Iterator[trimesh.Trimesh]:
    files = list(find_meshes(options.meshes).values())
    random.Random(options.seed).shuffle(files)
    found = 0
    for file in files:
        try:
            read = load_mesh(file)
            mesh = trimesh.Trimesh(read.vertices, read.faces, process=False)
            tokenizer.voxelize(mesh)
        except InputError:
            continue
        yield mesh
        found += 1
        if found == options.num:
            return
    raise InputError(f"{options.meshes} has {found} usable meshes; expected {options.num}; lower --num")


def timed(work: Callable[[Any], T], items: list) -> tuple[list[T], list[float]]:
    results, seconds = [], []
    for item in items:
        start = time.perf_counter()
        results.append(work(item))
        seconds.append(time.perf_counter() - start)
    return results, seconds


def spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 4),
        "p95": round(float(np.quantile(seconds, 0.95)), 4),
        "max": round(max(seconds), 4),
        "share_above_1_s": float(np.mean(np.array(seconds) > 1)),
    }


def differing_codes(tokenizer: ShapeTokenizer, grids: list[SparseSDF], expected: list[Tokens]) -> dict[str, int]:
    """Codes that come out otherwise than from the mesh, alone, on all threads."""

    def count(got: list[Tokens]) -> int:
        assert all(np.array_equal(a.coords, b.coords) for a, b in zip(got, expected, strict=True))
        return sum(int((a.indices != b.indices).sum()) for a, b in zip(got, expected, strict=True))

    found = {}
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        found[f"threads_{number}_batch_1"] = count([tokenizer.encode(grid) for grid in grids])
        batches = [tokenizer.encode_batch(grids[i : i + BATCH_SIZE]) for i in range(0, len(grids), BATCH_SIZE)]
        found[f"threads_{number}_batch_{BATCH_SIZE}"] = count([tokens for batch in batches for tokens in batch])
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        found["saved_and_loaded"] = count(list(map(ShapeTokenizer.from_pretrained(folder).encode, grids)))
    return found


@torch.no_grad()
def margins(tokenizer: ShapeTokenizer, grids: list[SparseSDF]) -> dict[str, float]:
    """How much farther the second nearest code is than the nearest, as a share of the distance to the nearest."""
    shares = []
    for grid in grids:
        x = from_arrays(grid.coords, grid.sdf, extent=tokenizer.resolution)
        z_e = tokenizer.vqvae.encode(x).feats.double()
        nearest = torch.cdist(z_e, tokenizer.vqvae.quantizer.codebooks[0].double()).topk(2, largest=False).values
        shares.append((nearest[:, 1] / nearest[:, 0].clamp(min=1e-12) - 1).numpy())
    share = np.concatenate(shares)
    return {"smallest": float(f"{share.min():.2g}"), "share_below_1e-5": float((share < 1e-5).mean())}


def sequences(tokenizer: ShapeTokenizer, tokens: list[Tokens]) -> dict[str, Any]:
    """Every mesh through JSON and back; where it decodes to nothing, nothing came back."""
    texts = [json.dumps(tokenizer.to_sequence(t)) for t in tokens]
    decoded, decode_seconds = timed(tokenizer.decode, tokens)
    identical = 0
    for mesh, text, t in zip(decoded, texts, tokens, strict=True):
        back = tokenizer.decode(tokenizer.from_sequence(json.loads(text), center=t.center, scale=t.scale))
        identical += np.array_equal(mesh.vertices, back.vertices) and np.array_equal(mesh.faces, back.faces)
    return {
        "decode_seconds": spread(decode_seconds),
        "identical_meshes": identical,
        "empty_meshes": sum(not len(mesh.faces) for mesh in decoded),
        "integers_per_code": round(sum(len(json.loads(text)) for text in texts) / sum(map(len, tokens)), 3),
        "vocabulary_size": tokenizer.vocabulary.size,
    }


def codec(options: argparse.Namespace, tokenizer: ShapeTokenizer, meshes: list[trimesh.Trimesh]) -> dict[str, Any]:
    """Of each way its settings: mean and median over the meshes of bits and of CD-L1, in units of the [-1, 1] cube."""
    first = ResidualQuantizer.of(tokenizer.vqvae.quantizer.codebooks[:1])
    alone = ShapeTokenizer(VQVAE(tokenizer.vqvae.vae, first), **tokenizer.grid_options)
    found = defaultdict(list)
    for mesh in track(meshes, len(meshes), description="codec", unit="shape"):
        surface = normalised_surface(mesh.vertices, mesh.faces)
        truth = Truth(surface, num_points=NUM_POINTS, seed=options.seed)
        ways = {"tokens": by_tokens(tokenizer, mesh), "tokens, first level": by_tokens(alone, mesh)}
        ways |= {f"Draco, {bits} bits": by_draco(surface, bits) for bits in DRACO_BITS}
        for way, (size, decoded) in ways.items():
            found[way].append((size, distance(truth, decoded)))
    rows = {way: of_meshes(*np.array(pairs).T) for way, pairs in found.items()}
    draw(rows, options.json.with_suffix(".png"))
    faces = int(statistics.median(len(mesh.faces) for mesh in meshes))
    return conditions(tokenizer.device) | {"num_meshes": len(meshes), "faces_median": faces, "rows": rows}


def distance(truth: Truth, decoded: trimesh.Trimesh) -> float:
    if not len(decoded.faces):
        return math.nan
    return truth.compare(decoded, thresholds=(), voxel_size=None, with_iou=False).cd_l1


def by_tokens(tokenizer: ShapeTokenizer, mesh: trimesh.Trimesh) -> tuple[float, trimesh.Trimesh]:
    """Bits of codes, were all equally frequent, and of their places; and the mesh in the cube."""
    tokens = tokenizer.encode(mesh)
    decoded = tokenizer.decode(tokens)
    decoded.vertices = (decoded.vertices - tokens.center) / tokens.scale
    bits = len(tokens) * tokenizer.vqvae.quantizer.bits + bits_of_places(tokens, tokenizer.vocabulary)
    return bits, decoded


def bits_of_places(tokens: Tokens, vocabulary: Vocabulary) -> float:
    """As the flat sequence has them: log2(255) for each octree occupancy, nothing for the markers."""
    num_markers = 2 + vocabulary.octree_levels
    return (len(vocabulary.flatten(tokens)) - tokens.indices.size - num_markers) * math.log2(255)


def by_draco(surface: Surface, bits: int) -> tuple[float, trimesh.Trimesh]:
    cube = {"quantization_range": 2.0, "quantization_origin": (-1.0, -1.0, -1.0)}
    data = DracoPy.encode(surface.vertices, surface.faces, quantization_bits=bits, compression_level=10, **cube)
    decoded = DracoPy.decode(data)
    return 8.0 * len(data), trimesh.Trimesh(decoded.points, decoded.faces, process=False)


def of_meshes(bits: np.ndarray, cd_l1: np.ndarray) -> dict[str, float]:
    return {
        "bits_mean": round(float(bits.mean())),
        "bits_median": round(float(np.median(bits))),
        "cd_l1_mean": round(float(np.nanmean(cd_l1)), 6),
        "cd_l1_median": round(float(np.nanmedian(cd_l1)), 6),
        "failed": int(np.isnan(cd_l1).sum()),
    }


def draw(rows: dict[str, dict[str, float]], file: Path) -> None:
    """Medians: bits a shape against CD-L1."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name in ("Draco", "tokens"):
        points = [(row["bits_median"], row["cd_l1_median"]) for way, row in rows.items() if way.startswith(name)]
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    for way, row in rows.items():
        axes.annotate(
            way.split(", ")[-1],
            (row["bits_median"], row["cd_l1_median"]),
            fontsize=7,
            xytext=(4, 4),
            textcoords="offset points",
        )
    axes.set(xscale="log", yscale="log", xlabel="bits a shape, median", ylabel="CD-L1, median")
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
