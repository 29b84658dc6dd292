"""Does the tokenizer keep what it promises: the same shape, the same tokens; the same tokens, the same mesh?

    .venv/bin/python -m benchmarks.tokens [--meshes FOLDER] [--num 100] [--json FILE]        (after make repro)

On meshes of a folder (drawn by --seed): do all give the same tokens for 1 and 2 threads, alone and in batches of 4, and
from the tokenizer saved and loaded; does the flat sequence give the mesh back bit for bit; how long is it; how near to
a tie are the codes; what does a mesh cost.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
import trimesh

from benchmarks import command_line, conditions, write_json
from model.errors import InputError
from model.meshes import find_meshes, load_mesh
from model.sdf import SparseSDF
from model.sparse import from_arrays
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens

T = TypeVar("T")
BATCH_SIZE = 4


def main() -> None:
    parser = command_line(__doc__, "tokens.json")
    parser.add_argument("--meshes", type=Path, default=Path("data/meshes"))
    parser.add_argument("--tokenizer", default="artifacts/tokenizer")
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tokenizer = ShapeTokenizer.from_pretrained(options.tokenizer)
    meshes = list(usable_meshes(options, tokenizer))
    tokenizer.reconstruct(meshes[0])  # compiles kernels
    tokens, encode_seconds = timed(tokenizer.encode, meshes)
    grids = [tokenizer.voxelize(mesh) for mesh in meshes]
    figures = conditions(tokenizer.device) | {
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
    write_json(options.json, figures)
    print(json.dumps(figures, indent=2))


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


if __name__ == "__main__":
    main()
