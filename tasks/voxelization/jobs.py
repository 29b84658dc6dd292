"""One mesh file to one shape, in processes that a hostile file may take down without harm.

What becomes of a file is kept in scratch, by the hash of what it depends on: its content, its suffix, the parameters
and the code. A rerun, an interrupted run or one new mesh therefore costs only what is not there yet.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from model.errors import InputError, printable, reason_of
from model.files import write_whole
from model.jobs import GB, Failure, Limits, run_all
from model.meshes import ChangedError, Mesh, load_mesh, memory_to_load, sha256_of
from model.progress import track
from model.sdf import SparseSDF, Surface, compile_kernels, normalised_surface, voxelize
from tasks import shards
from tasks.run import Voxelize, code_version, paths
from tasks.voxelization.splits import surface_hash

_MARKERS = "under_way"  # a folder in scratch
_REMEDY = "simplify or remove the mesh, or raise voxelize.{} in params.yaml"


class Recipe(NamedTuple):
    """What model.sdf.voxelize takes besides the mesh."""

    resolution: int
    truncation_voxels: float
    mode: Literal["auto", "solid", "shell"]
    max_bad_flip_ratio: float


class Job(NamedTuple):
    name: str
    path: Path  # absolute, as is scratch: a worker of a cluster may run elsewhere
    recipe: Recipe
    version: str  # hash of the code that turns a file into a shape
    scratch: Path
    max_memory_gb: float

    def key(self, sha256: str) -> str:
        """The name in scratch of what becomes of the file, by all that it depends on."""
        parts = [sha256, self.path.suffix.lower(), *self.recipe, self.version]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What became of one mesh file: facts for the index, or the reason why it can't be used."""

    name: str
    key: str = ""
    sha256: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def voxelize_all(files: dict[str, Path], options: Voxelize) -> Iterator[Outcome]:
    recipe = Recipe(
        resolution=options.resolution,
        truncation_voxels=options.truncation_voxels,
        mode=options.mode,
        max_bad_flip_ratio=options.max_bad_flip_ratio if options.mode == "auto" else 0.0,
    )
    tracked = {name: path for name, path in files.items() if _is_text(path.relative_to(options.meshes))}
    for name in files.keys() - tracked.keys():
        yield Outcome(name, reason="its name is not UTF-8, and DVC can't track such a file; rename it")
    of_all = recipe, code_version("voxelize"), paths.VOXELIZE_SCRATCH.absolute(), options.max_memory_gb
    jobs = (Job(name, path.absolute(), *of_all) for name, path in tracked.items())
    compile_kernels()
    results = run_all(
        _voxelize_file,
        jobs,
        limits=Limits(options.max_seconds, options.max_memory_gb),
        markers=paths.VOXELIZE_SCRATCH / _MARKERS,
        dask_scheduler=options.dask_scheduler,
    )
    for job, result in track(results, len(tracked), description="voxelize", unit="file"):
        if isinstance(result, Failure):
            remedy = _REMEDY.format("max_seconds" if result.out_of_time else "max_memory_gb")
            yield Outcome(job.name, reason=f"{result.reason}; {remedy}")
        else:
            yield result


def _is_text(name: Path) -> bool:
    try:
        str(name).encode()
    except UnicodeEncodeError:
        return False
    return True


def _voxelize_file(job: Job) -> Outcome:
    """What scratch has, or a new attempt. A verdict on the content is kept there; bad luck of this run is not.

    Raises what reason_of does where the machine is at fault and not the file: such a run must end, or it would drop
    every mesh.
    """
    pa.set_cpu_count(1)
    try:
        needed = memory_to_load(job.path) / GB
        if needed > job.max_memory_gb:
            remedy = _REMEDY.format(f"max_memory_gb ({job.max_memory_gb:g})")
            return Outcome(job.name, reason=f"reading this file takes about {needed:.1f} GB of memory; {remedy}")
        sha256 = sha256_of(job.path)
        key = job.key(sha256)
        done, refused = (_scratch_file(job.scratch, key, kind) for kind in ("parquet", "json"))
        known = _in_scratch(done, refused) or _attempt(job, sha256, done, refused)
    except Exception as error:  # noqa: BLE001 - one mesh must not end the run, and its reject says what happened
        reason = reason_of(error, given=job.path, more_memory=_REMEDY.format("max_memory_gb"))
        return Outcome(job.name, reason=reason)
    return Outcome(job.name, key, sha256, **known)


def _in_scratch(done: Path, refused: Path) -> dict[str, Any] | None:
    """The facts or the verdict that an attempt left, or None. What is damaged is removed, to be made again."""
    try:
        if refused.is_file():
            return {"reason": str(json.loads(refused.read_bytes())["reason"])}
        return {"facts": shards.read_facts(done)} if done.is_file() else None
    except (ValueError, KeyError, TypeError):
        for file in (done, refused):
            file.unlink(missing_ok=True)
        return None


def shape_in_scratch(outcome: Outcome) -> pa.RecordBatch:
    return shards.read_lone_shape(_scratch_file(paths.VOXELIZE_SCRATCH, outcome.key, "parquet"), outcome.name)


def _scratch_file(scratch: Path, key: str, kind: str) -> Path:
    """In one of 256 folders: a hundred thousand files in one would make every folder listing slow."""
    return scratch / key[:2] / f"{key}.{kind}"


def _load(path: Path, sha256: str) -> Mesh:
    """The mesh of a file with this hash. Raises InputError saying why there is none."""
    mesh = load_mesh(path)
    if sha256_of(path) != sha256:
        raise ChangedError("the file changed while it was read; wait until it is written, then run again")
    return mesh


def _attempt(job: Job, sha256: str, done: Path, refused: Path) -> dict[str, Any]:
    """The facts of the shape, or the verdict, that are now in scratch. Raises what says nothing about the content."""
    try:
        shape, facts = _make_shape(job, sha256)
    except ChangedError:
        raise
    except InputError as error:
        write_whole(refused, json.dumps({"reason": str(error)}))
        return {"reason": str(error)}
    shards.write_lone_shape(done, shape, facts)
    return {"facts": facts}


def _make_shape(job: Job, sha256: str) -> tuple[SparseSDF, dict[str, Any]]:
    """The shape and its facts. Raises InputError saying why there is none."""
    started = time.monotonic()
    mesh = _load(job.path, sha256)
    shape = voxelize(mesh.vertices, mesh.faces, **job.recipe._asdict())
    _refuse_hollow(mesh, shape)
    surface = surface_hash(mesh.vertices, mesh.faces)
    return shape, {
        "surface_hash": surface.digest,
        "on_edge_of_hash": surface.on_edge,
        "num_faces": len(mesh.faces),
        "num_dropped_faces": mesh.num_dropped,
        "watertight": mesh.is_closed,
        "notes": list(mesh.notes),
        "mode": shape.mode,
        "bad_flip_ratio": shape.bad_flip_ratio,
        "lost_area_share": shape.lost_area_share,  # of parts too thin for a voxel that are not kept as a shell either
        "inside_share": float((shape.sdf < 0).mean()),  # of the band's voxels
        "num_voxels": len(shape.coords),
        "num_bricks": len(shape.brick_coords),
        "seconds": time.monotonic() - started,
    }


def _refuse_hollow(mesh: Mesh, shape: SparseSDF) -> None:
    if not (shape.sdf < 0).any():
        sides = np.ptp(mesh.vertices[mesh.faces.reshape(-1)], axis=0) / (shape.scale * 2 / shape.resolution)
        flat = f", and it is flat: {sides.min():.2g} voxels along {'xyz'[sides.argmin()]}" if sides.min() < 1 else ""
        raise InputError(
            f"no voxel is inside it at resolution {shape.resolution}{flat}; expected a body at least a voxel thick; "
            "close it, thicken it, raise voxelize.resolution or set voxelize.mode to shell"
        )


def surface_of(path: Path, sha256: str) -> Surface:
    """The surface of a file that was read well before, in the [-1, 1] cube. Raises InputError naming the file."""
    try:
        mesh = _load(path, sha256)
    except InputError as error:  # it was read well before
        raise InputError(f"{printable(path)}: {error}") from error
    return normalised_surface(mesh.vertices, mesh.faces)


def forget_all_but(outcomes: list[Outcome]) -> None:
    """Keeps the scratch folder from growing with every change of parameters or meshes."""
    kept = {outcome.key for outcome in outcomes}
    for entry in paths.VOXELIZE_SCRATCH.iterdir():
        if entry.name == _MARKERS or not entry.is_dir():
            rmtree(entry) if entry.is_dir() else entry.unlink()
            continue
        for file in entry.iterdir():
            if file.stem not in kept:
                file.unlink()
