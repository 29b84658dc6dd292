"""What breaks, and what grows how, from thousands of shapes to a million?

    .venv/bin/python -m benchmarks.scale FOLDER [--shapes 4000 20000] [--index-only 1000000] [--json FILE]

Makes in FOLDER, which it empties, what the stages voxelize and encode would leave for so many tiny shapes: 4 bricks,
1024 voxels in the band and 16 latents each, written by the project's own writers, so that index, digests and row groups
are real. Each part is measured in a process of its own, in seconds by the clock and of CPU. For --index-only the index
is real and so are the shards of what the first batches draw; all other shards are files of a few bytes.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, contextmanager
from importlib.metadata import version
from itertools import islice
from math import ceil
from pathlib import Path
from shutil import rmtree
from typing import Any
from warnings import filterwarnings

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import yaml
from dvc.repo import Repo

from benchmarks import ROOT, command, command_line, processor, write_json
from model.files import digest_of
from model.meshes import find_meshes, irregular_files
from model.sdf import SparseSDF
from tasks.data import ShapeLatents, dataset, latents_file, read_vectors, write_latents
from tasks.encode import VIEWS_PER_FILE
from tasks.run import PARAMS_FILE, ShapeTraining, load_settings, paths
from tasks.shards import INDEX, SPLITS, Place, open_shards, shape_row, write_index, write_shards
from tasks.voxelization import Outcome, forget_all_but, split_of, splits_brought

SHAPES_PER_SHARD = 64
RESOLUTION = 64
NUM_BRICKS, NUM_VOXELS = 4, 1024
NUM_LATENTS, LATENT_CHANNELS = 16, 64
SHAPES_A_BATCH, NUM_BATCHES = 64, 10
CHANGED_SHARE = 0.01
NUM_REWRITTEN = 3000  # shapes, four times over
MB = 1e6
Row = dict[str, Any]

# --- shapes, as voxelize leaves them


def band(layer: float = 3.5) -> SparseSDF:
    """A plane through four bricks."""
    brick_coords = np.array([(x, y, 4) for x in (3, 4) for y in (3, 4)], np.int32)
    local = np.indices((8, 8, 8)).reshape(3, -1).T.astype(np.int32)
    distance = (local[:, 2] - layer) / 2
    in_band = np.abs(distance) < 1
    coords = (brick_coords[:, None] * 8 + local[in_band]).reshape(-1, 3)
    inside = np.broadcast_to((distance < 0).reshape(8, 8, 8), (NUM_BRICKS, 8, 8, 8))
    sdf = np.tile(distance[in_band], NUM_BRICKS).astype(np.float32)
    return SparseSDF(coords, sdf, RESOLUTION, 2.0, np.zeros(3), 1.0, brick_coords, inside, 0.0)


def names_of(num: int) -> list[str]:
    return [f"{i // 1000:05d}/{i:08d}" for i in range(num)]


def rows_of(names: list[str], changed: Set[str] = frozenset()) -> Iterator[pa.RecordBatch]:
    row, other = shape_row("", band()), shape_row("", band(3.4))
    for name in names:
        yield (other if name in changed else row).set_column(0, "name", pa.array([name]))


def index_of(names: list[str], places: list[Place]) -> pd.DataFrame:
    """The columns of voxelize's."""
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    constant: Row = {"num_faces": 4, "num_dropped_faces": 0, "watertight": True, "notes": "", "mode": "solid"}
    constant |= {"bad_flip_ratio": 0.0, "lost_area_share": 0.0, "inside_share": 0.5, "num_voxels": NUM_VOXELS}
    index = pd.DataFrame({"name": names, "sha256": digests, "surface_hash": [digest[:16] for digest in digests]})
    split = [split_of(digest, val_share=0.05, test_share=0.05) for digest in digests]
    index = index.assign(split=split, on_edge_of_hash=False, num_bricks=NUM_BRICKS, **constant)
    return index.join(pd.DataFrame(places))


def write_dataset(directory: Path, names: list[str], changed: Set[str] = frozenset()) -> None:
    places = write_shards(directory, rows_of(names, changed), shapes_per_shard=SHAPES_PER_SHARD)
    write_index(directory / INDEX, index_of(names, places), resolution=RESOLUTION, truncation_voxels=2.0)


def write_dataset_of_index(directory: Path, names: list[str]) -> None:
    """The whole index; real shards hold only what the first batches draw, the others a name."""
    places = [
        Place(f"shard_{i // SHAPES_PER_SHARD:05d}.parquet", i % SHAPES_PER_SHARD, digest_of([name]))
        for i, name in enumerate(names)
    ]
    index = index_of(names, places)
    train = index.name[index.split == "train"].sort_values()
    sizes = dict.fromkeys(train, NUM_VOXELS)
    batches = dataset.draw_batches(sizes, batch_voxels=training().batch_voxels, augment=True, seed=0, start=0)
    num_loaded = NUM_BATCHES + 3 * dataset.WORKERS_PER_GPU
    drawn = sorted({view.view.name for batch in islice(batches, num_loaded) for view in batch})
    real = pd.DataFrame(write_shards(directory, rows_of(drawn), shapes_per_shard=SHAPES_PER_SHARD), index=drawn)
    real["shard"] = "drawn_" + real.shard
    for shard in set(real.shard):
        os.replace(directory / shard.removeprefix("drawn_"), directory / shard)
    for shard in dict.fromkeys(index.shard):
        (directory / shard).write_text(shard)
    index = index.set_index("name")
    index.loc[drawn, [*Place._fields]] = real
    index = index.reset_index()
    write_index(directory / INDEX, index, resolution=RESOLUTION, truncation_voxels=2.0)


def size_of(directory: Path) -> Row:
    sizes = [file.stat().st_size for file in directory.iterdir()]
    return {"files": len(sizes), "mb": sum(sizes) / MB}


# --- clocks and memory


@contextmanager
def clock(row: Row, what: str) -> Iterator[None]:
    """Seconds by the clock and of CPU, of this process and of the children that have ended."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    yield
    row |= {f"{what}_s": time.perf_counter() - wall, f"{what}_cpu_s": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def memory(pid: int | str = "self") -> dict[str, float]:
    """MB of a process: all that it sees in memory, and what is its own alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {key: int(value.split()[0]) for key, value in (line.split(":") for line in lines)}
    return {"rss_mb": kb["Rss"] / 1e3, "private_mb": (kb["Private_Clean"] + kb["Private_Dirty"]) / 1e3}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def alone(work: Callable[..., Row], *arguments: Any) -> Row:
    """In a process of its own, forked from this one, which does nothing itself."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        return rounded(pool.submit(work, *arguments).result())


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


# --- what is measured


def writing(directory: Path, num: int, index_only: bool) -> Row:
    row: Row = {}
    with clock(row, "write"):
        (write_dataset_of_index if index_only else write_dataset)(directory, names_of(num))
    return row | size_of(directory) | {"index_mb": (directory / INDEX).stat().st_size / MB, "peak_mb": peak_mb()}


def training() -> ShapeTraining:
    stage2 = load_settings(ROOT / PARAMS_FILE).stage2
    return stage2.model_copy(
        update={"seed": 0, "augment": True, "shape_voxels": NUM_VOXELS, "batch_voxels": SHAPES_A_BATCH * NUM_VOXELS}
    )


def loading(directory: Path) -> Row:
    """The index and the first batches, with the workers that training has for a GPU."""
    torch.set_num_threads(1)
    filterwarnings("ignore", category=UserWarning)  # more workers than cores, no memory to pin
    row: Row = {"before": memory()}
    with clock(row, "open_index"):
        shards = open_shards(directory)
    row |= {"with_index": memory(), "peak_mb": peak_mb()}
    with clock(row, "digest"):
        shards.digest()
    with clock(row, "first_batch"):
        batches = iter(dataset.batch_loader(shards, training(), start=0, device=torch.device("cuda")))
        first = next(batches)
    assert len(first.names) == SHAPES_A_BATCH
    with clock(row, f"next_{NUM_BATCHES}_batches"):
        for _ in range(NUM_BATCHES):
            next(batches)
    workers = [memory(child.pid) for child in multiprocessing.active_children() if child.pid]
    row |= {"with_sampler": memory(), "num_workers": len(workers)}
    row["worker"] = {key: max(worker[key] for worker in workers) for key in workers[0]}
    return row


def start_dvc(folder: Path, *, deps: Sequence[str] = (), outs: Sequence[Any] = (str(paths.SDF),)) -> None:
    """A graph of one stage, and a remote beside it. Without dvc's start, a second or two of a command."""
    stage = {"cmd": "false", "deps": [*deps], "outs": [*outs]}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"voxelize": stage}}))
    remote = folder.absolute().parent / "remote"
    (folder / ".dvc").mkdir()
    settings = f"[core]\nno_scm = true\nanalytics = false\nremote = store\n['remote \"store\"']\nurl = {remote}\n"
    (folder / ".dvc" / "config").write_text(settings)
    remote.mkdir(exist_ok=True)


def versioning(folder: Path) -> Row:
    """What DVC takes for data/sdf as it is, and with other content in 1 % of its shards."""
    row: Row = {}
    start_dvc(folder)
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    start_dvc(elsewhere)

    def commit_push_pull(of: str) -> None:
        with clock(row, f"commit{of}"), chdir(folder):
            Repo().commit(force=True)
        with clock(row, f"push{of}"), chdir(folder):
            Repo().push()
        (elsewhere / "dvc.lock").write_bytes((folder / "dvc.lock").read_bytes())
        with clock(row, f"pull{of}"), chdir(elsewhere):
            Repo().pull(force=True)

    commit_push_pull("")
    row |= nothing_to_do(folder)
    shards = sorted((folder / paths.SDF).glob("shard_*"))
    changed = shards[:: int(1 / CHANGED_SHARE)]
    names = [f"other {number}" for number in range(SHAPES_PER_SHARD * len(changed))]
    write_shards(folder / "other", rows_of(names), shapes_per_shard=SHAPES_PER_SHARD)
    for shard, other in zip(changed, sorted((folder / "other").iterdir()), strict=False):
        os.replace(other, shard)
    row["changed_shards"] = len(changed)
    commit_push_pull("_of_change")
    return row


def nothing_to_do(folder: Path) -> Row:
    """What `dvc status` and `dvc repro` take when all is as it was."""
    row: Row = {}
    with clock(row, "status"), chdir(folder):
        assert Repo().status() == {}
    with clock(row, "repro"), chdir(folder):
        assert Repo().reproduce() == []
    return row


def changes(folder: Path, num: int) -> Row:
    """Which shards are others once voxelize has written them anew."""
    names = names_of(num)
    few, first = int(CHANGED_SHARE * num), num // 3
    write_dataset(folder / "before", names)
    before = {file.read_bytes() for file in (folder / "before").glob("shard_*")}
    row: Row = {"shards": len(before)}
    for what, now, changed in (
        ("one_percent_side_by_side", names, names[first : first + few]),
        ("one_percent_all_over", names, names[:: num // few]),
        ("one_new_mesh", sorted([*names, names[first] + "a"]), []),
    ):
        write_dataset(folder / what, now, frozenset(changed))
        row[what] = sum(file.read_bytes() not in before for file in (folder / what).glob("shard_*"))
    return row


def latents(directory: Path, num: int) -> Row:
    """What encode writes and stage 1 reads."""
    rng = np.random.default_rng(0)
    coords = torch.zeros(NUM_LATENTS, 3, dtype=torch.int32)
    size = NUM_LATENTS, LATENT_CHANNELS
    views = (
        ShapeLatents(name, 0, coords, torch.from_numpy(rng.standard_normal(size, np.float32))) for name in names_of(num)
    )
    num_files = ceil(num / VIEWS_PER_FILE)
    row: Row = {}
    with clock(row, "write"):
        for number in range(num_files):
            write_latents(latents_file(directory, "train", number, num_files), islice(views, VIEWS_PER_FILE))
    return row | size_of(directory) | {"peak_mb": peak_mb()}


def reading_latents(directory: Path) -> Row:
    torch.set_num_threads(1)
    row: Row = {"before": memory()}
    with clock(row, "read"):
        vectors = read_vectors(directory, "train", max_per_view=4096, seed=0)
    return row | {"vectors_mb": vectors.nbytes / MB, "peak_mb": peak_mb()}


def meshes(folder: Path, num: int) -> Row:
    """What voxelize does with the names of files, and DVC with a folder of meshes."""
    folder.mkdir()
    os.chdir(folder)
    names, home = names_of(num), Path("meshes")
    for number, name in enumerate(names):
        file = home / f"{name}.obj"
        if number % 1000 == 0:
            file.parent.mkdir(parents=True)
        file.write_text(tetrahedron(number))
    rows = (f"{name},{SPLITS[i % 3]}" for i, name in enumerate(names))
    (home / "split.csv").write_text("name,split\n" + "\n".join(rows))
    row: Row = {"before": memory()}
    with clock(row, "find_meshes"):
        found = find_meshes(home)
    row["with_files"] = memory()
    with clock(row, "splits"):
        assert len(splits_brought(home, found) or {}) == num
    with clock(row, "check_inputs"):
        irregular_files(home)
    facts: Row = {str(key): value for key, value in index_of(["a"], [Place("", 0, digest_of([]))]).iloc[0].items()}
    outcomes = [Outcome(name, hashlib.sha256(name.encode()).hexdigest(), "0" * 64, dict(facts)) for name in names]
    row["with_outcomes"] = memory()
    for part in range(256):
        (paths.VOXELIZE_SCRATCH / f"{part:02x}").mkdir(parents=True)
    for outcome in outcomes:
        (paths.VOXELIZE_SCRATCH / outcome.key[:2] / f"{outcome.key}.parquet").touch()
    with clock(row, "tidy_scratch"):
        forget_all_but(outcomes)
    start_dvc(folder, deps=["meshes"], outs=[{"made": {"cache": False}}])
    Path("made").touch()
    with clock(row, "dvc_commit"):
        Repo().commit(force=True)
    return row | {f"dvc_{what}": figure for what, figure in nothing_to_do(folder).items()}


def tetrahedron(number: int) -> str:
    return f"# {number}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 {1 + number / 1e6}\nf 1 3 2\nf 1 2 4\nf 1 4 3\nf 2 3 4\n"


def real_shards(directory: Path) -> Row:
    shards = open_shards(directory)
    num_bytes = sum(file.stat().st_size for file in directory.glob("shard_*"))
    row: Row = {"resolution": shards.resolution, "num_shapes": len(shards.index)}
    row |= {"voxels_a_shape": float(shards.index.num_voxels.mean()), "mb_a_shape": num_bytes / len(shards.index) / MB}
    return row | {"bytes_a_voxel": num_bytes / int(shards.index.num_voxels.sum())}


def per_shape(small: Row, large: Row, at: int, sizes: tuple[int, int]) -> Row:
    """Each figure on the line through two sizes."""

    def line(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return per_shape(a, b, at, sizes)
        return a + (b - a) * (at - sizes[0]) / (sizes[1] - sizes[0])

    return {key: line(small[key], large[key]) for key in small if key in large}


def main() -> None:
    parser = command_line(__doc__, "scale.json")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", type=int, nargs=2, default=[4_000, 20_000], metavar=("FEW", "MANY"))
    parser.add_argument("--shards", type=Path, metavar="FOLDER", help="what voxelize left of real meshes: its size")
    parser.add_argument("--index-only", type=int, default=1_000_000, metavar="NUM")
    options = parser.parse_args()
    root = options.folder.absolute()
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        parser.error(f"{options.folder} is not empty")

    result: Row = {"command": command(), "device": processor(), "python": sys.version.split()[0]}
    result |= {name: version(name) for name in ("torch", "pandas", "pyarrow", "dvc")}
    result["sizes"] = {}

    def part(num: int, name: str, work: Callable[..., Row], *arguments: Any) -> None:
        (root / str(num)).mkdir(exist_ok=True)
        result["sizes"].setdefault(str(num), {})[name] = row = alone(work, *arguments)
        print(num, name, json.dumps(row), flush=True)
        write_json(options.json, result)

    for num in [options.index_only, *options.shapes]:
        only, folder = num == options.index_only, root / str(num) / "pipeline"
        part(num, "shards", writing, folder / paths.SDF, num, only)
        part(num, "loading", loading, folder / paths.SDF)
        part(num, "dvc", versioning, folder)
        if not only:
            part(num, "latents", latents, folder / "latents", num)
            part(num, "reading_latents", reading_latents, folder / "latents")
            part(num, "meshes", meshes, root / str(num) / "voxelize", num)
        rmtree(root / str(num))
    result["changes"] = alone(changes, root / "changes", NUM_REWRITTEN)
    if options.shards:
        result["real_shards"] = alone(real_shards, options.shards)
    few, many = options.shapes
    small, large = (result["sizes"][str(num)] for num in options.shapes)
    line = per_shape(small, large, options.index_only, (few, many))
    result["on_the_line_through_both"] = {str(options.index_only): rounded(line)}
    write_json(options.json, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
