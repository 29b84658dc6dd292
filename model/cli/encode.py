"""`shape-tokenizer encode`: mesh files to tokens."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..errors import InputError, printable
from ..jobs import Failure, Limits, run_all
from ..meshes import SUFFIXES, find_meshes
from ..progress import track
from ..sdf import compile_kernels
from ..tokenizer import ShapeTokenizer
from ..tokens import Tokens, check_suffix, write_tokens
from .rejects import Rejects, say
from .tokenizer import load_tokenizer
from .voxelizing import Voxelized, VoxelizeJob, voxelize_file


def encode_files(meshes: Sequence[Path], out: Path, *, limits: Limits, tokenizer: str, device: str | None) -> int:
    """Write the tokens of mesh files and of those in folders to `out`. Returns how many could not be encoded.

    `limits` are those of reading and voxelizing one of them. Raises InputError where `out` or the tokenizer can't be
    used.
    """
    check_suffix(out)
    rejects = Rejects()
    files = _named_files(meshes, rejects)
    loaded = load_tokenizer(tokenizer, device)
    num_tokens = num_encoded = 0

    def encoded() -> Iterator[tuple[str, Tokens]]:
        nonlocal num_tokens, num_encoded
        for name, result in _encode_all(files, loaded, limits):
            if isinstance(result, str):
                rejects.add(f"{files[name]}: {result}")
            else:
                num_encoded, num_tokens = num_encoded + 1, num_tokens + len(result)
                yield name, result

    write_tokens(out, encoded(), loaded)
    rejects.conclude(f"encoded {num_encoded} of {num_encoded + rejects.num} into {out}, {num_tokens} codes in all")
    return rejects.num


def _named_files(given: Iterable[Path], rejects: Rejects) -> dict[str, Path]:
    """Mesh files by name, in the order given; the others are rejected.

    A file below a folder is named as find_meshes names it, one given by itself by its stem; where two names collide,
    both files go by their whole path.
    """
    found: list[tuple[str, Path]] = []
    for path in given:
        if path.is_dir():
            below = find_meshes(path)
            found += below.items()
            if not below:
                rejects.add(f"{path}: there is no file ending in {', '.join(SUFFIXES)} below it")
        elif path.suffix.lower() not in SUFFIXES:
            rejects.add(f"{path}: expected a file ending in {', '.join(SUFFIXES)}, or a folder")
        elif not path.exists():
            rejects.add(f"{path}: there is no such file")
        else:
            found.append((printable(path.stem), path))
    count = Counter(name for name, _ in found)
    return {n if count[n] == 1 else printable(os.path.abspath(p).lstrip("/")): p for n, p in found}  # noqa: PTH100


def _encode_all(
    files: dict[str, Path], tokenizer: ShapeTokenizer, limits: Limits
) -> Iterator[tuple[str, Tokens | str]]:
    """Tokens of each file, or the reason why it has none, in the order of the files.

    Reading and voxelizing is done by other processes, which a hostile file may take down without harm.
    """
    grid = tuple(tokenizer.grid_options.items())
    jobs = [VoxelizeJob(name, path, grid, limits.memory_gb) for name, path in files.items()]
    waiting: dict[str, Tokens | str] = {}
    order = iter(files)
    due = next(order, None)
    if jobs:
        compile_kernels()
    with TemporaryDirectory() as markers:
        results = run_all(voxelize_file, jobs, limits=limits, markers=Path(markers)) if jobs else iter(())
        for job, result in track(results, len(jobs), description="encode", unit="file"):
            for note in result.notes if isinstance(result, Voxelized) else ():
                say(f"note on {job.path}: {note}")
            waiting[job.name] = _encode(result, tokenizer)
            while due is not None and due in waiting:
                yield due, waiting.pop(due)
                due = next(order, None)


def _encode(result: Voxelized | Failure | str, tokenizer: ShapeTokenizer) -> Tokens | str:
    if isinstance(result, Failure):
        remedy = "--max-seconds" if result.out_of_time else "--max-memory-gb"
        return f"{result.reason}; simplify the mesh or raise {remedy}"
    if isinstance(result, str):
        return result
    try:
        return tokenizer.encode(result.grid)
    except InputError as error:
        return str(error)
    except torch.OutOfMemoryError:
        return f"its {len(result.grid.coords):,} voxels do not fit into the GPU's memory; try --device cpu"
