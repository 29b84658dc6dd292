"""Does the tokenizer keep what it promises: the same shape, the same tokens; the same tokens, the same mesh?

    .venv/bin/python -m benchmarks.tokens [--meshes FOLDER] [--num 100] [--json FILE]        (after make repro)
    .venv/bin/python -m benchmarks.tokens codec --tokenizer pretrained/tokenizer_128 --meshes FOLDER

On meshes of a folder (drawn by --seed): do all give the same tokens for 1 and 2 threads, alone and in batches of 4, and
from the tokenizer saved and loaded; does the flat sequence give the mesh back bit for bit; how long is it; how near to
a tie are the codes; what does a mesh cost. `codec`: bits a shape, CD-L1 and IoUs of the tokens, of all levels and of
the first alone, beside Draco's (https://google.github.io/draco, compression level 10) on the same meshes in the same
cube, at several bits a coordinate, and what other tokenizers' papers say; and a picture beside the JSON.
"""

import argparse
import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import DracoPy
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import trimesh
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks import FOLDER, command_line, conditions, write_json
from model.errors import InputError
from model.evaluation.measuring import IOUS
from model.evaluation.reconstructions import Reconstruction, Reconstructor
from model.meshes import find_meshes, load_mesh
from model.metrics import Truth
from model.progress import track
from model.quantizer import ResidualQuantizer
from model.sdf import SparseSDF, Surface, normalised_surface
from model.sparse import from_arrays
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens, Vocabulary
from model.tokens.grammar import Codes
from model.vqvae import VQVAE

T = TypeVar("T")
JSON_NAMES = {"promises": "tokens.json", "codec": "tokens_codec.json"}
BATCH_SIZE = 4
NUM_POINTS = 100_000  # samples of a surface
DRACO_BITS = (5, 6, 7, 8, 10, 12)  # of a coordinate
PUBLISHED = (
    {
        "name": "Cube",
        "source": "https://arxiv.org/abs/2503.15475, table 1 (Ours-VQ) and section 2.4: 512 tokens of 16384 codes",
        "meshes": "Toys4K",
        "bits": 512 * math.log2(16384),
        "volume_iou": 0.945,
        "surface_iou": 0.917,
    },
)


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
    """Of the grid and of each way with its settings: bits, CD-L1 in units of the [-1, 1] cube, and IoUs."""
    first = ResidualQuantizer.of(tokenizer.vqvae.quantizer.codebooks[:1])
    networks = {"tokens": tokenizer.vqvae, "tokens, first level": VQVAE(tokenizer.vqvae.vae, first)}
    reconstructor = Reconstructor(networks, tokenizer.device)
    num_levels, lines = len(tokenizer.vqvae.quantizer.levels), []
    for mesh in track(meshes, len(meshes), description="codec", unit="shape"):
        surface, grid = normalised_surface(mesh.vertices, mesh.faces), tokenizer.voxelize(mesh)
        truth = Truth(surface, num_points=NUM_POINTS, seed=options.seed)
        codes = Codes(grid.brick_coords, np.zeros((len(grid.brick_coords), num_levels), np.int64))
        places = bits_of_places(codes, tokenizer.vocabulary)
        for way in [*reconstructor.rows(grid), *(by_draco(surface, bits) for bits in DRACO_BITS)]:
            geometry = truth.compare(
                way.mesh, thresholds=(), voxel_size=None, field=way.field, with_iou=truth.mesh.is_closed
            )
            bits = way.bits if way.field is None or way.bits is None else way.bits + places
            lines.append({"way": way.row, "bits": bits, **geometry.as_row()})
    table = pd.DataFrame(lines).astype({"bits": float, **dict.fromkeys(IOUS, float)})
    rows = {str(way): of_meshes(part) for way, part in table.groupby("way", sort=False)}
    draw(rows, options.json.with_suffix(".png"))
    faces = int(statistics.median(len(mesh.faces) for mesh in meshes))
    found = {"meshes": options.meshes.name, "num_meshes": len(meshes), "faces_median": faces, "rows": rows}
    return conditions(tokenizer.device) | found | {"published": PUBLISHED}


def bits_of_places(tokens: Tokens | Codes, vocabulary: Vocabulary) -> float:
    """As the flat sequence has them: log2(255) for each octree occupancy, nothing for the markers."""
    num_markers = 2 + vocabulary.octree_levels
    return (len(vocabulary.flatten(tokens)) - tokens.indices.size - num_markers) * math.log2(255)


def by_draco(surface: Surface, bits: int) -> Reconstruction:
    cube = {"quantization_range": 2.0, "quantization_origin": (-1.0, -1.0, -1.0)}
    data = DracoPy.encode(surface.vertices, surface.faces, quantization_bits=bits, compression_level=10, **cube)
    decoded = DracoPy.decode(data)
    return Reconstruction(f"Draco, {bits} bits", Surface(decoded.points, decoded.faces), bits=8.0 * len(data))


def of_meshes(table: pd.DataFrame) -> dict[str, float | None]:
    """Bits, and CD-L1 of what did not come out empty; of the closed meshes, of which IoUs are, bits once more."""
    closed = table[table["volume_iou"].notna()]
    columns = {"bits": table["bits"], "cd_l1": table["cd_l1"][~table["failed"]], "closed_bits": closed["bits"]}
    columns |= {iou: closed[iou] for iou in IOUS}
    figures = {f"{name}_{how}": column.agg(how) for name, column in columns.items() for how in ("mean", "median")}
    figures |= {"failed": table["failed"].sum(), "num_closed": len(closed)}
    return {name: None if pd.isna(figure) else float(f"{figure:.6g}") for name, figure in figures.items()}


def draw(rows: dict[str, dict[str, Any]], file: Path) -> None:
    """Bits a shape against CD-L1, medians, and against V-IoU, means, where papers' figures are too."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    left.set(xscale="log", yscale="log", xlabel="bits a shape, median", ylabel="CD-L1, median (less is better)")
    right.set(xscale="log", xlabel="bits a shape, mean of closed meshes", ylabel="V-IoU, mean (more is better)")
    for axes, x, y in ((left, "bits_median", "cd_l1_median"), (right, "closed_bits_mean", "volume_iou_mean")):
        for name, side, place in (("Draco", "left", (6, 4)), ("tokens", "right", (0, 6))):
            points = {way: (row[x], row[y]) for way, row in rows.items() if way.startswith(name)}
            axes.plot(*zip(*sorted(points.values()), strict=True), "o-", label=name)
            for way, point in points.items():
                label = way.removeprefix(f"{name}, ").replace("tokens", "both levels")
                axes.annotate(label, point, fontsize=8, ha=side, xytext=place, textcoords="offset points")
        axes.margins(x=0.1)
        axes.axhline(rows["floor"][y], color="gray", linestyle=":", label="the tokens' grid")
        for axis in (axes.xaxis, axes.yaxis) if axes is left else (axes.xaxis,):
            axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6, 8)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:,g}")
    for peer in PUBLISHED:
        label = f"{peer['name']}, as published, on {peer['meshes']}"
        right.plot(peer["bits"], peer["volume_iou"], "D", color="C3", markerfacecolor="none", label=label)
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
