"""Meshes to sparse SDF shards, on all cores: `python -m tasks.voxelize`.

Every mesh is voxelized into a scratch file named by the hash of what it depends on; shards are then put together from
those. A rerun, an interrupted run or one new mesh therefore costs only what is not there yet.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

import model.sdf
from model.errors import InputError
from model.sdf import SparseSDF, normalised_surface, voxelize
from tasks import meshes, shards
from tasks.meshes import SUFFIXES, find_meshes, load_mesh
from tasks.paths import METRICS, SDF, VOXELIZE_SCRATCH
from tasks.progress import track
from tasks.settings import Settings, Voxelize
from tasks.stage import run_stage, whole_directory, write_whole

AMBIGUOUS = 0.03  # share of bad flips above which a mesh has no clear inside


class Job(NamedTuple):
    name: str
    path: Path
    resolution: int
    truncation_voxels: float
    scratch: Path
    version: str  # hash of the code that turns a file into a shape
    marker: Path  # exists while the job runs, so that a dead process leaves its mesh's name


@dataclass(frozen=True)
class Outcome:
    """What became of one mesh file: facts for the index, or the reason why it can't be used."""

    name: str
    path: Path
    key: str = ""
    sha256: str = ""
    facts: dict[str, Any] | None = None
    reason: str = ""


def voxelize_meshes(settings: Settings) -> None:
    options = settings.voxelize
    started = time.monotonic()
    files = find_meshes(options.meshes)
    if not files:
        raise InputError(
            f"no mesh in {options.meshes}; expected files ending in {', '.join(SUFFIXES)} at any depth; "
            "put some there or set voxelize.meshes in params.yaml"
        )
    outcomes = sorted(_voxelize_all(files, options), key=lambda outcome: outcome.name)
    usable = [outcome for outcome in outcomes if not outcome.reason]
    rejected = [outcome for outcome in outcomes if outcome.reason]
    for outcome in rejected:
        print(f"rejected {outcome.path}: {outcome.reason}")
    _check_share(rejected, len(outcomes), options)

    index = _index(usable, options)
    _check_splits(index, options)
    metrics = _metrics(index, num_rejected=len(rejected))
    with whole_directory(SDF) as directory:
        _write_dataset(directory, usable, rejected, index, options)
    write_whole(METRICS / "voxelize.json", json.dumps(metrics, indent=2) + "\n")
    _forget_all_but(usable + rejected)

    ambiguous = int((index.bad_flip_ratio > AMBIGUOUS).sum())
    if ambiguous:
        print(f"{ambiguous} meshes have no clear inside (bad_flip_ratio above {AMBIGUOUS} in {SDF / shards.INDEX})")
    print(
        f"voxelize: {len(usable)} of {len(outcomes)} meshes in {time.monotonic() - started:.0f} s, {len(rejected)} "
        f"rejected; {metrics['num_train']} train, {metrics['num_val']} val, {metrics['num_test']} test"
    )


def split_of(sha256: str, *, val_share: float, test_share: float) -> str:
    """The split of a file by the hash of its content alone: other files coming or going never move it."""
    position = int(sha256[:15], 16) / 16**15
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def _voxelize_all(files: dict[str, Path], options: Voxelize) -> Iterator[Outcome]:
    VOXELIZE_SCRATCH.mkdir(parents=True, exist_ok=True)
    version = _code_version()
    jobs = [
        Job(
            name=name,
            path=path,
            resolution=options.resolution,
            truncation_voxels=options.truncation_voxels,
            scratch=VOXELIZE_SCRATCH,
            version=version,
            marker=VOXELIZE_SCRATCH / f"{number}.running",
        )
        for number, (name, path) in enumerate(files.items())
    ]
    _compile_kernels()
    num_workers = min(len(os.sched_getaffinity(0)), len(jobs))
    yield from track(_run(jobs, num_workers), len(jobs), description="voxelize", unit="file")


def _run(jobs: list[Job], num_workers: int) -> Iterator[Outcome]:
    """The outcome of every job. When a process dies, the jobs it may have died of run again alone, to tell which."""
    pending = dict.fromkeys(jobs)
    while pending:
        for job in pending:
            job.marker.unlink(missing_ok=True)
        for job, outcome in _run_pool(list(pending), num_workers):
            pending.pop(job)
            yield outcome
        for job in [job for job in pending if job.marker.exists()]:
            pending.pop(job)
            alone = [outcome for _, outcome in _run_pool([job], 1)]
            yield alone[0] if alone else Outcome(job.name, job.path, reason=_DIED)


_DIED = "the process that voxelized it died, perhaps of too little memory; simplify the mesh"


def _run_pool(jobs: list[Job], num_workers: int) -> Iterator[tuple[Job, Outcome]]:
    """Finished jobs; ends early when a worker process dies."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin_worker)
    try:
        futures: dict[Future[Outcome], Job] = {pool.submit(_voxelize_file, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                outcome = future.result()
            except BrokenProcessPool:
                continue
            yield futures[future], outcome
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    """Ctrl-C is the parent's to handle; and no worker outlives a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pa.set_cpu_count(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _compile_kernels() -> None:
    """In this process, before the workers start: they would otherwise all compile the same code at once."""
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    voxelize(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]), resolution=16, truncation_voxels=2.0)


def _voxelize_file(job: Job) -> Outcome:
    job.marker.write_text(job.name)
    outcome = _outcome(job)
    job.marker.unlink()
    return outcome


def _outcome(job: Job) -> Outcome:
    """What scratch has, or a new attempt. A verdict on the content is kept there; bad luck of this run is not."""
    try:
        sha256 = hashlib.sha256(job.path.read_bytes()).hexdigest()
    except OSError as error:
        return Outcome(job.name, job.path, reason=f"the file can't be opened ({error.strerror}); check its permissions")
    depends_on = [sha256, job.path.suffix.lower(), job.resolution, job.truncation_voxels, job.version]
    key = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()
    result = job.scratch / f"{key}.json"
    if not result.is_file():
        try:
            verdict = _attempt(job, job.scratch / f"{key}.parquet")
        except MemoryError:
            return Outcome(job.name, job.path, reason="there was not enough memory for it; simplify the mesh")
        write_whole(result, json.dumps(verdict))
    return Outcome(job.name, job.path, key, sha256, **json.loads(result.read_text()))


def _attempt(job: Job, target: Path) -> dict[str, Any]:
    """The facts of the shape, which is written to `target`, or the reason why there is none."""
    try:
        mesh = load_mesh(job.path)
        shape = voxelize(mesh.vertices, mesh.faces, resolution=job.resolution, truncation_voxels=job.truncation_voxels)
    except InputError as error:
        return {"reason": str(error)}
    if not (shape.sdf < 0).any():
        return {
            "reason": f"no voxel is inside it at resolution {job.resolution}; expected a body at least a voxel thick; "
            "close it, thicken it or raise voxelize.resolution"
        }
    shards.write_row_groups(target, [shards.shape_row("", shape)])
    return {"facts": _facts(shape, num_faces=len(mesh.faces), watertight=mesh.watertight)}


def _facts(shape: SparseSDF, *, num_faces: int, watertight: bool) -> dict[str, Any]:
    return {
        "num_faces": num_faces,
        "watertight": watertight,
        "bad_flip_ratio": shape.bad_flip_ratio,
        "inside_share": float((shape.sdf < 0).mean()),  # of the band's voxels
        "num_voxels": len(shape.coords),
        "num_bricks": len(shape.brick_coords),
    }


def _code_version() -> str:
    """A hash of the code between a file and its shape: changing it makes what lies in the scratch folder stale."""
    package = Path(model.sdf.__file__).parent
    sources = [*sorted(package.glob("*.py")), Path(meshes.__file__), Path(shards.__file__), Path(__file__)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()


def _check_share(rejected: list[Outcome], num_files: int, options: Voxelize) -> None:
    share = len(rejected) / num_files
    if share > options.max_rejected_share or len(rejected) == num_files:
        some = "; ".join(f"{outcome.path}: {outcome.reason}" for outcome in rejected[:3])
        raise InputError(
            f"{len(rejected)} of {num_files} meshes can't be used (share {share:.3f}, voxelize.max_rejected_share is "
            f"{options.max_rejected_share:g}); repair or remove them, or raise it in params.yaml; the first: {some}"
        )


def _check_splits(index: pd.DataFrame, options: Voxelize) -> None:
    remedies = {
        "train": "add meshes",
        "val": f"add meshes or raise voxelize.val_share ({options.val_share:g})",
        "test": f"add meshes or raise voxelize.test_share ({options.test_share:g})",
    }
    for split, remedy in remedies.items():
        if not (index.split == split).any():
            raise InputError(f"none of the {len(index)} meshes fell into the {split} split; expected some; {remedy}")


def _index(usable: list[Outcome], options: Voxelize) -> pd.DataFrame:
    rows = []
    for outcome in usable:
        split = split_of(outcome.sha256, val_share=options.val_share, test_share=options.test_share)
        rows.append({"name": outcome.name, "split": split, "sha256": outcome.sha256, **(outcome.facts or {})})
    return pd.DataFrame(rows)


def _metrics(index: pd.DataFrame, *, num_rejected: int) -> dict[str, float]:
    return {
        "num_meshes": len(index),
        **{f"num_{split}": int((index.split == split).sum()) for split in shards.SPLITS},
        "num_rejected": num_rejected,
        "rejected_share": num_rejected / (len(index) + num_rejected),
        "num_watertight": int(index.watertight.sum()),
        "mean_voxels": float(index.num_voxels.mean()),
        "mean_bricks": float(index.num_bricks.mean()),
        "mean_bad_flip_ratio": float(index.bad_flip_ratio.mean()),
    }


def _write_dataset(
    directory: Path, usable: list[Outcome], rejected: list[Outcome], index: pd.DataFrame, options: Voxelize
) -> None:
    rows = (shards.read_shape_row(VOXELIZE_SCRATCH / f"{outcome.key}.parquet", outcome.name) for outcome in usable)
    places = shards.write_shards(directory, rows, shapes_per_shard=options.shapes_per_shard)
    index = index.join(pd.DataFrame(places))
    shards.write_index(
        directory / shards.INDEX,
        index,
        resolution=options.resolution,
        truncation_voxels=options.truncation_voxels,
    )
    reasons = {"file": [str(o.path) for o in rejected], "reason": [o.reason for o in rejected]}
    schema = pa.schema([("file", pa.string()), ("reason", pa.string())])
    shards.write_table(directory / shards.REJECTS, pa.table(reasons, schema=schema))
    files = {outcome.name: outcome.path for outcome in usable}
    surfaces = ((name, load_mesh(files[name])) for name in index.name[index.split == "test"])
    shards.write_surfaces(
        directory / shards.SURFACES, ((name, normalised_surface(m.vertices, m.faces)) for name, m in surfaces)
    )


def _forget_all_but(outcomes: list[Outcome]) -> None:
    """Keeps the scratch folder from growing with every change of parameters or meshes."""
    kept = {outcome.key for outcome in outcomes}
    for file in VOXELIZE_SCRATCH.iterdir():
        if file.stem not in kept:
            file.unlink()


if __name__ == "__main__":
    run_stage("voxelize", voxelize_meshes)
