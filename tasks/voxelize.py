"""Meshes to sparse SDF shards, on all cores or a Dask cluster: `python -m tasks.voxelize`.

Every mesh is voxelized into a scratch file named by the hash of what it depends on; shards are then put together from
those. A rerun, an interrupted run or one new mesh therefore costs only what is not there yet.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from model.errors import InputError, printable
from model.files import whole_directory, write_whole
from model.jobs import GB, Failure, Limits, run_all
from model.meshes import SUFFIXES, ChangedError, Mesh, find_meshes, load_mesh, memory_to_load, sha256_of
from model.progress import track
from model.sdf import Surface, normalised_surface, voxelize
from tasks import shards
from tasks.run import METRICS, SDF, TIMINGS, VOXELIZE_SCRATCH, Settings, Voxelize, code_version, run_stage

LOST = 0.001  # share of a mesh's area above which what is lost of it is worth a line
AMBIGUOUS = 0.03  # share of bad flips above which a mesh has no clear inside
_MARKERS = "under_way"  # a folder in scratch
_REMEDY = "simplify or remove the mesh, or raise voxelize.{} in params.yaml"


class Recipe(NamedTuple):
    """What a shape depends on besides its file."""

    resolution: int
    truncation_voxels: float
    mode: Literal["auto", "solid", "shell"]
    max_bad_flip_ratio: float
    version: str  # hash of the code that turns a file into a shape

    def key(self, sha256: str, suffix: str) -> str:
        """The name in scratch of what becomes of a file."""
        return hashlib.sha256(json.dumps([sha256, suffix.lower(), *self]).encode()).hexdigest()


class Job(NamedTuple):
    name: str
    path: Path  # absolute, as is scratch: a worker of a cluster may run elsewhere
    recipe: Recipe
    scratch: Path
    max_memory_gb: float


@dataclass(frozen=True)
class Outcome:
    """What became of one mesh file: facts for the index, or the reason why it can't be used."""

    name: str
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
    assert [outcome.name for outcome in outcomes] == sorted(files)
    usable = [outcome for outcome in outcomes if not outcome.reason]
    rejected = [outcome for outcome in outcomes if outcome.reason]
    rejects = {printable(files[outcome.name]): outcome.reason for outcome in rejected}
    for file, reason in rejects.items():
        print(printable(f"rejected {file}: {reason}"))
    _check_share(rejects, len(outcomes), options)

    index = _index(usable, options)
    _check_splits(index, options)
    metrics = _metrics(index, num_rejected=len(rejected))
    with whole_directory(SDF) as directory:
        _write_dataset(directory, usable, files, rejects, index, options)
    seconds = {"name": index.name, "seconds": [(outcome.facts or {})["seconds"] for outcome in usable]}
    shards.write_table(TIMINGS / "voxelize.parquet", pa.table(seconds))
    write_whole(METRICS / "voxelize.json", json.dumps(metrics, indent=2) + "\n")
    _forget_all_but(usable + rejected)

    _print_kinds(index)
    for line in _summary_of_notes(index):
        print(line)
    print(
        f"voxelize: {len(usable)} of {len(outcomes)} meshes in {time.monotonic() - started:.0f} s, {len(rejected)} "
        f"rejected; {metrics['num_train']} train, {metrics['num_val']} val, {metrics['num_test']} test"
    )


def _print_kinds(index: pd.DataFrame) -> None:
    """What is not simply a solid with a clear inside, and what is lost: nothing goes in silence."""
    where = SDF / shards.INDEX
    shells, mixed = (int((index["mode"] == kind).sum()) for kind in ("shell", "mixed"))
    if shells or mixed:
        print(
            f"{shells} meshes are shells, {mixed} solids with shells for what is too thin for a voxel (mode in {where})"
        )
    shares = dict(zip(index.name, index.lost_area_share, strict=True))
    lost = [name for name, share in shares.items() if share > LOST]
    if lost:
        worst = max(lost, key=lambda name: shares[name])
        print(
            f"{len(lost)} meshes lose more than {LOST:.1%} of their area, in parts too thin for a voxel, at most "
            f"{shares[worst]:.1%} of {worst} (lost_area_share in {where}); raise voxelize.resolution or set "
            "voxelize.mode to auto or shell"
        )
    ambiguous = int((index.bad_flip_ratio > AMBIGUOUS).sum())
    if ambiguous:
        print(f"{ambiguous} meshes have no clear inside (bad_flip_ratio above {AMBIGUOUS} in {where})")


def split_of(sha256: str, *, val_share: float, test_share: float) -> str:
    """The split of a file by the hash of its content alone: other files coming or going never move it."""
    position = int(sha256[:15], 16) / 16**15
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def _voxelize_all(files: dict[str, Path], options: Voxelize) -> Iterator[Outcome]:
    recipe = Recipe(
        resolution=options.resolution,
        truncation_voxels=options.truncation_voxels,
        mode=options.mode,
        max_bad_flip_ratio=options.max_bad_flip_ratio if options.mode == "auto" else 0.0,
        version=code_version("voxelize"),
    )
    tracked = {name: path for name, path in files.items() if _is_text(path.relative_to(options.meshes))}
    for name in files.keys() - tracked.keys():
        yield Outcome(name, reason="its name is not UTF-8, and DVC can't track such a file; rename it")
    scratch = VOXELIZE_SCRATCH.absolute()
    jobs = (Job(name, path.absolute(), recipe, scratch, options.max_memory_gb) for name, path in tracked.items())
    _compile_kernels()
    results = run_all(
        _voxelize_file,
        jobs,
        limits=Limits(options.max_seconds, options.max_memory_gb),
        markers=VOXELIZE_SCRATCH / _MARKERS,
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


def _compile_kernels() -> None:
    """In this process, before the workers start: they would otherwise all compile the same code at once."""
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    closed, opened = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], [[0, 2, 1], [0, 1, 3], [0, 3, 2]]
    against = [*closed, *(np.array(closed)[:, ::-1] + 4).tolist()]  # two bodies, one inside out
    for faces in (closed, opened, against):
        both = np.concatenate([vertices, vertices + 2])
        voxelize(both, np.array(faces), resolution=16, truncation_voxels=2.0, mode="auto", max_bad_flip_ratio=0.0)


def _voxelize_file(job: Job) -> Outcome:
    """What scratch has, or a new attempt. A verdict on the content is kept there; bad luck of this run is not."""
    pa.set_cpu_count(1)
    try:
        needed = memory_to_load(job.path) / GB
        if needed > job.max_memory_gb:
            remedy = _REMEDY.format(f"max_memory_gb ({job.max_memory_gb:g})")
            return Outcome(job.name, reason=f"reading this file takes about {needed:.1f} GB of memory; {remedy}")
        sha256 = sha256_of(job.path)
    except InputError as error:
        return Outcome(job.name, reason=str(error))
    except OSError as error:
        return Outcome(job.name, reason=f"the file can't be opened ({error.strerror}); check its permissions")
    key = job.recipe.key(sha256, job.path.suffix)
    done, refused = (_scratch_file(job.scratch, key, kind) for kind in ("parquet", "json"))
    if not done.is_file() and not refused.is_file():
        try:
            _attempt(job, sha256, done)
        except ChangedError as error:
            return Outcome(job.name, reason=str(error))
        except InputError as error:
            write_whole(refused, json.dumps({"reason": str(error)}))
        except MemoryError:
            return Outcome(job.name, reason=f"there was not enough memory for it; {_REMEDY.format('max_memory_gb')}")
        except Exception as error:  # noqa: BLE001 - one mesh must not end the run, and its reject says what happened
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return Outcome(job.name, reason=f"voxelizing it failed ({what}); this is a fault of ours, please report it")
    if refused.is_file():
        return Outcome(job.name, key, sha256, reason=json.loads(refused.read_text())["reason"])
    return Outcome(job.name, key, sha256, facts=shards.read_facts(done))


def _scratch_file(scratch: Path, key: str, kind: str) -> Path:
    """In one of 256 folders: a hundred thousand files in one would make every folder listing slow."""
    return scratch / key[:2] / f"{key}.{kind}"


def _load(path: Path, sha256: str) -> Mesh:
    """The mesh of a file with this hash. Raises InputError saying why there is none."""
    mesh = load_mesh(path)
    if sha256_of(path) != sha256:
        raise ChangedError("the file changed while it was read; wait until it is written, then run again")
    return mesh


def _attempt(job: Job, sha256: str, target: Path) -> None:
    """Writes the shape and its facts to `target`. Raises InputError saying why there is none."""
    started = time.monotonic()
    recipe = job.recipe
    mesh = _load(job.path, sha256)
    shape = voxelize(
        mesh.vertices,
        mesh.faces,
        resolution=recipe.resolution,
        truncation_voxels=recipe.truncation_voxels,
        mode=recipe.mode,
        max_bad_flip_ratio=recipe.max_bad_flip_ratio,
    )
    if not (shape.sdf < 0).any():
        sides = np.ptp(mesh.vertices[mesh.faces.reshape(-1)], axis=0) / (shape.scale * 2 / recipe.resolution)
        flat = f", and it is flat: {sides.min():.2g} voxels along {'xyz'[sides.argmin()]}" if sides.min() < 1 else ""
        raise InputError(
            f"no voxel is inside it at resolution {recipe.resolution}{flat}; expected a body at least a voxel thick; "
            "close it, thicken it, raise voxelize.resolution or set voxelize.mode to shell"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "num_faces": len(mesh.faces),
        "num_dropped_faces": mesh.num_dropped,
        "watertight": mesh.is_closed,
        "notes": mesh.notes,
        "mode": shape.mode,
        "bad_flip_ratio": shape.bad_flip_ratio,
        "lost_area_share": shape.lost_area_share,  # of parts too thin for a voxel that are not kept as a shell either
        "inside_share": float((shape.sdf < 0).mean()),  # of the band's voxels
        "num_voxels": len(shape.coords),
        "num_bricks": len(shape.brick_coords),
        "seconds": time.monotonic() - started,
    }
    shards.write_lone_shape(target, shape, facts)


def _check_share(rejects: dict[str, str], num_files: int, options: Voxelize) -> None:
    share = len(rejects) / num_files
    if share > options.max_rejected_share or len(rejects) == num_files:
        some = "; ".join(f"{file}: {reason}" for file, reason in list(rejects.items())[:3])
        raise InputError(
            f"{len(rejects)} of {num_files} meshes can't be used (share {share:.3f}, voxelize.max_rejected_share is "
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
        facts = {key: value for key, value in (outcome.facts or {}).items() if key != "seconds"}
        facts["notes"] = "; ".join(facts["notes"])
        rows.append({"name": outcome.name, "split": split, "sha256": outcome.sha256, **facts})
    return pd.DataFrame(rows)


def _summary_of_notes(index: pd.DataFrame) -> list[str]:
    """For each kind of note, how many meshes have it, and one of them."""
    names: dict[str, list[str]] = {}
    for name, notes in zip(index.name, index.notes, strict=True):
        for kind in dict.fromkeys(note.rpartition(": ")[0] for note in notes.split("; ") if note):
            names.setdefault(kind, []).append(name)
    column = f"column notes of {SDF / shards.INDEX}"
    return [f"{kind}: {len(found)} meshes, such as {found[0]} ({column})" for kind, found in sorted(names.items())]


def _metrics(index: pd.DataFrame, *, num_rejected: int) -> dict[str, float]:
    return {
        "num_meshes": len(index),
        **{f"num_{split}": int((index.split == split).sum()) for split in shards.SPLITS},
        "num_rejected": num_rejected,
        "rejected_share": num_rejected / (len(index) + num_rejected),
        "num_watertight": int(index.watertight.sum()),
        "num_cleaned": int((index.num_dropped_faces > 0).sum()),
        "num_shells": int((index["mode"] == "shell").sum()),
        "num_mixed": int((index["mode"] == "mixed").sum()),
        "mean_voxels": float(index.num_voxels.mean()),
        "mean_bricks": float(index.num_bricks.mean()),
        "mean_bad_flip_ratio": float(index.bad_flip_ratio.mean()),
        "mean_lost_area_share": float(index.lost_area_share.mean()),
    }


def _write_dataset(
    directory: Path,
    usable: list[Outcome],
    files: dict[str, Path],
    rejects: dict[str, str],
    index: pd.DataFrame,
    options: Voxelize,
) -> None:
    rows = (
        shards.read_lone_shape(_scratch_file(VOXELIZE_SCRATCH, outcome.key, "parquet"), outcome.name)
        for outcome in usable
    )
    places = shards.write_shards(directory, rows, shapes_per_shard=options.shapes_per_shard)
    index = index.join(pd.DataFrame(places))
    shards.write_index(
        directory / shards.INDEX,
        index,
        resolution=options.resolution,
        truncation_voxels=options.truncation_voxels,
    )
    schema = pa.schema([("file", pa.string()), ("reason", pa.string())])
    table = pa.table({"file": list(rejects), "reason": list(rejects.values())}, schema=schema)
    shards.write_table(directory / shards.REJECTS, table)
    test = index[index.split == "test"]
    surfaces = ((name, _surface(files[name], sha256)) for name, sha256 in zip(test.name, test.sha256, strict=True))
    shards.write_surfaces(directory / shards.SURFACES, surfaces)


def _surface(path: Path, sha256: str) -> Surface:
    try:
        mesh = _load(path, sha256)
    except InputError as error:  # it was read well before
        raise InputError(f"{printable(path)}: {error}") from error
    return normalised_surface(mesh.vertices, mesh.faces)


def _forget_all_but(outcomes: list[Outcome]) -> None:
    """Keeps the scratch folder from growing with every change of parameters or meshes."""
    kept = {outcome.key for outcome in outcomes}
    for entry in VOXELIZE_SCRATCH.iterdir():
        if entry.name == _MARKERS or not entry.is_dir():
            rmtree(entry) if entry.is_dir() else entry.unlink()
            continue
        for file in entry.iterdir():
            if file.stem not in kept:
                file.unlink()


if __name__ == "__main__":
    run_stage("voxelize", voxelize_meshes)
