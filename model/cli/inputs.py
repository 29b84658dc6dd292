"""The mesh files that a command is given, read and voxelized in processes of their own."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from ..errors import printable
from ..jobs import Failure, Limits, run_all
from ..meshes import SUFFIXES, find_meshes
from ..sdf import compile_kernels
from ..tokenizer import ShapeTokenizer
from .rejects import Rejects, say
from .voxelizing import Voxelized, VoxelizeJob, voxelize_file

T = TypeVar("T")


def named_files(given: Iterable[Path], rejects: Rejects) -> dict[str, Path]:
    """Mesh files by name, in the order given, each once; the others are rejected.

    A file below a folder is named as find_meshes names it, one given by itself by its stem; where two names collide,
    both files go by their whole path.
    """
    found: list[tuple[str, Path]] = []
    for path in given:
        if path.is_dir():
            below = find_meshes(path)
            found += below.items()
            if not below:
                rejects.add(path, f"there is no file ending in {', '.join(SUFFIXES)} below it")
        elif path.suffix.lower() not in SUFFIXES:
            rejects.add(path, f"expected a file ending in {', '.join(SUFFIXES)}, or a folder")
        elif not path.exists():
            rejects.add(path, "there is no such file")
        else:
            found.append((printable(path.stem), path))
    once: dict[str, tuple[str, Path]] = {}  # by whole path
    for name, path in found:
        once.setdefault(os.path.abspath(path), (name, path))  # noqa: PTH100 - links keep their names
    count = Counter(name for name, _ in once.values())
    return {n if count[n] == 1 else printable(whole.lstrip("/")): p for whole, (n, p) in once.items()}


def voxelize_files(
    files: Mapping[str, Path],
    tokenizer: ShapeTokenizer,
    limits: Limits,
    *,
    with_surface: bool = False,
    dask_scheduler: str | None = None,
    markers: Path | None = None,
) -> Iterator[tuple[str, Voxelized | str]]:
    """The grid of each file, or the reason why it has none, as they are done.

    Reading and voxelizing is done by other processes, which a hostile file may take down without harm: this machine's,
    or those of a Dask cluster, which must see the files and the folder `markers` at the same paths.
    """
    if not files:
        return
    grid = tuple(tokenizer.grid_options.items())
    jobs = [VoxelizeJob(name, path.absolute(), grid, limits.memory_gb, with_surface) for name, path in files.items()]
    compile_kernels()
    with nullcontext(markers) if markers else TemporaryDirectory() as place:
        results = run_all(voxelize_file, jobs, limits=limits, markers=Path(place), dask_scheduler=dask_scheduler)
        for job, result in results:
            if isinstance(result, Failure):
                remedy = "--max-seconds" if result.out_of_time else "--max-memory-gb"
                yield job.name, f"{result.reason}; simplify the mesh or raise {remedy}"
                continue
            for note in result.notes if isinstance(result, Voxelized) else ():
                say(f"note on {files[job.name]}: {note}")
            yield job.name, result


def in_order(names: Iterable[str], results: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """The results in the order of their names. One that comes too early is kept until it is due."""
    waiting: dict[str, T] = {}
    order = iter(names)
    due = next(order, None)
    for name, result in results:
        waiting[name] = result
        while due is not None and due in waiting:
            yield due, waiting.pop(due)
            due = next(order, None)
