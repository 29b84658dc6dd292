"""`shape-tokenizer encode --format parquet`: folders of meshes to a data set, in runs that may be killed."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import Any

from ..errors import InputError, is_of_environment
from ..jobs import Limits
from ..meshes import sha256_of
from ..progress import track
from ..tokenizer import ShapeTokenizer
from ..tokens import Dataset, Tokens, open_dataset, row_of
from .encode import encode_grid
from .inputs import in_order, named_files, voxelize_files
from .rejects import Rejects, say, write_csv
from .tokenizer import load_tokenizer

LENGTH, MESH_SHA256 = "length", "mesh_sha256"  # columns of a data set, beside those of a line
_MARKERS = ".under_way"  # a folder that a cluster's workers see too


def encode_dataset(
    meshes: Sequence[Path],
    out: Path,
    *,
    limits: Limits,
    tokenizer: str | None,
    device: str | None,
    dask_scheduler: str | None,
    max_tokens: int | None,
) -> int:
    """Add the meshes that are not there yet to the data set in the folder `out`; see model/tokens/dataset.py.

    Beside the folder go two tables: OUT_rejects.csv has what could not be used, OUT_longer_than_N.csv the shapes whose
    sequence is longer than `max_tokens`; these stay in the data set. Returns how many meshes could not be used. Raises
    InputError where the folder, the tokenizer or the cluster can't be used.
    """
    if out.suffix in (".jsonl", ".parquet") or out.is_file():
        raise InputError(f"--out is {out}; expected a folder for --format parquet; name one")
    rejects = Rejects()
    files = named_files(meshes, rejects)
    loaded = load_tokenizer(tokenizer, device)
    started = time.monotonic()
    with open_dataset(out, loaded) as dataset:
        run = _Run(dataset, files, loaded, rejects)
        dataset.append(run.rows(limits, dask_scheduler))
        seconds = time.monotonic() - started
        num_gone = dataset.finish(files, (name for name in run.refused if run.hashes[name]))
        _list(dataset, rejects, max_tokens)
    rate = f", {run.num_fresh} meshes in this run, {run.num_fresh / seconds:.3g} a second" if run.num_fresh else ""
    gone = f", {num_gone} earlier rows of meshes of the same names taken out" if num_gone else ""
    rejects.conclude(f"{len(dataset.written)} shapes in {out}{gone}{rate}")
    return rejects.num


class _Run:
    """What is there of a data set, and what is still to be made of mesh files."""

    def __init__(self, dataset: Dataset, files: Mapping[str, Path], tokenizer: ShapeTokenizer, rejects: Rejects):
        self.dataset, self.files, self.tokenizer, self.rejects = dataset, files, tokenizer, rejects
        with ThreadPoolExecutor() as pool:
            self.hashes = dict(zip(files, pool.map(_hash_of, files.values()), strict=True))
        self.wanted = [name for name in files if not dataset.has(name, self.hashes[name])]
        self.noted = {name: row for name in self.wanted if (row := dataset.noted(name, self.hashes[name]))}
        self.num_fresh = 0
        self.refused: list[str] = []
        if num_done := len(files) - len(self.wanted) + len(self.noted):
            say(f"{num_done} of {len(files)} meshes are done already")

    def rows(self, limits: Limits, dask_scheduler: str | None) -> Iterator[Mapping[str, Any]]:
        """Of every shape that no shard has, in the order of the files."""
        for name, row in in_order(self.wanted, self._results(limits, dask_scheduler)):
            if "reason" in row:
                self.rejects.add(self.files[name], row["reason"])
                self.refused.append(name)
            else:
                yield row

    def _results(self, limits: Limits, dask_scheduler: str | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Rows, and reasons why there is none, as they are done."""
        yield from self.noted.items()
        rest = {name: self.files[name] for name in self.wanted if name not in self.noted}
        markers = self.dataset.folder / _MARKERS if dask_scheduler else None
        grids = voxelize_files(rest, self.tokenizer, limits, dask_scheduler=dask_scheduler, markers=markers)
        for name, grid in track(grids, len(rest), description="encode", unit="file"):
            row = self._row(name, encode_grid(grid, self.tokenizer))
            if self.hashes[name] != _hash_of(self.files[name]):
                row = {"reason": "the file changed while it was read; wait until it is written, then run again"}
            elif self.hashes[name]:
                self.dataset.note(row)
            self.num_fresh += 1
            yield name, row
        if markers:
            rmtree(markers, ignore_errors=True)

    def _row(self, name: str, result: Tokens | str) -> Mapping[str, Any]:
        """Of the data set, or with the reason why there is none."""
        identity = {"name": name, MESH_SHA256: self.hashes[name]}
        if isinstance(result, str):
            return {**identity, "reason": result}
        row = row_of(name, result, self.tokenizer)
        return {**row, **identity, LENGTH: len(row["tokens"])}


def _hash_of(path: Path) -> str:
    """Of what is read of a mesh file; nothing where it can't be, which the reader then says."""
    try:
        return sha256_of(path)
    except (InputError, OSError) as error:
        if is_of_environment(error, given=path):
            raise
        return ""


def _list(dataset: Dataset, rejects: Rejects, max_tokens: int | None) -> None:
    """The tables beside the folder."""
    folder = dataset.folder if dataset.folder.name else dataset.folder.absolute()  # as in --out .
    rejects.write(folder.with_name(f"{folder.name}_rejects.csv"))
    if max_tokens is None:
        return
    longer = sorted((name, shape.length) for name, shape in dataset.written.items() if shape.length > max_tokens)
    table = folder.with_name(f"{folder.name}_longer_than_{max_tokens}.csv")
    write_csv(table, ("name", LENGTH), longer)
    say(
        f"{len(longer)} of {len(dataset.written)} shapes are longer than {max_tokens} tokens: {table}; they stay in "
        f"the data set, whose column {LENGTH} tells them"
    )
