"""A data set of flat sequences: a folder of Parquet shards, made by runs that may be killed and begun again.

A shape is a row, as of a JSON line, and rows of a run stand in the order of its meshes. What is encoded but in no shard
yet stands in a journal, a line a shape, so that nothing is lost with the process but what it was working on.
"""

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InputError, is_of_environment, reading
from ..tables import metadata_of, read_table, write_table
from .grammar import SequenceTokenizer
from .tokens import REMEDY

SHAPES_PER_SHARD = 1024
UNFINISHED = ".unfinished"  # the journal: its name hides it from those who read all files of a folder
_SHARD, _SHARDS = "tokens-{:05d}.parquet", f"tokens-{'[0-9]' * 5}.parquet"
SHARD_REMEDY = "delete it and run encode again, which makes its shapes alone anew"
_TOKENIZER = "tokenizer"  # of the schema's metadata, whose "columns" says what each means
_COLUMNS = {
    "name": (pa.string(), "path of the mesh below its folder, without suffix"),
    "tokens": (pa.list_(pa.int32()), "the shape as a flat sequence, from start to end, integers below vocabulary.size"),
    "length": (pa.int32(), "how many integers that is"),
    "center": (pa.list_(pa.float64(), 3), "of the frame: world = cube * scale + center, the cube being [-1, 1]^3"),
    "scale": (pa.float64(), "of the frame"),
    "fingerprint": (pa.string(), "of the tokenizer that made the tokens and alone can decode them"),
    "digest": (pa.string(), "of tokens, center, scale and fingerprint; decode refuses a row that it does not fit"),
    "name_digest": (pa.string(), "of the name"),
    "mesh_sha256": (pa.string(), "of the content of the mesh file, and of the files that a glTF names"),
}
_NEEDED_TO_DECODE = ("name", "tokens", "center", "scale", "fingerprint", "digest", "name_digest")


class Written(NamedTuple):
    """What a shard has of a shape, without its tokens."""

    mesh_sha256: str
    length: int
    shard: Path


class Dataset:
    """The folder of one tokenizer's sequences, while one process adds to it: see open_dataset."""

    def __init__(self, folder: Path, tokenizer: SequenceTokenizer):
        vocabulary = tokenizer.vocabulary
        facts = {"num_codes": vocabulary.num_codes, "grid_size": vocabulary.grid_size, "size": vocabulary.size}
        meanings = {name: meaning for name, (_, meaning) in _COLUMNS.items()}
        metadata = {"columns": json.dumps(meanings), "vocabulary": json.dumps(facts), _TOKENIZER: tokenizer.fingerprint}
        self._schema = pa.schema([(name, kind) for name, (kind, _) in _COLUMNS.items()], metadata=metadata)
        self.folder, self.fingerprint = folder, tokenizer.fingerprint
        self.written: dict[str, Written] = {}  # by name
        self._stale: dict[Path, set[str]] = defaultdict(set)  # names of rows that others have replaced, by shard
        for shard in sorted(folder.glob(_SHARDS)):
            table = read_table(shard, remedy=SHARD_REMEDY)
            self._check(shard, metadata_of(table).get(_TOKENIZER, ""))
            self._take_in(shard, table)
        self._journal = {
            row["name"]: row
            for row in self._read_journal()
            if not self.has(row["name"], row["mesh_sha256"])  # written, and then the process was killed
        }

    def has(self, name: str, mesh_sha256: str) -> bool:
        """Whether a shard has this shape, made of a mesh file with this content."""
        return name in self.written and self.written[name].mesh_sha256 == mesh_sha256

    def noted(self, name: str, mesh_sha256: str) -> dict[str, Any] | None:
        """What an interrupted run noted of this shape, if its mesh file had this content."""
        row = self._journal.get(name)
        return row if row and row["mesh_sha256"] == mesh_sha256 else None

    def note(self, row: Mapping[str, Any]) -> None:
        """Keep a shape's row, or name, mesh_sha256 and "reason", for a run that goes on where this one is killed."""
        line = json.dumps({**row, "fingerprint": self.fingerprint}, separators=(",", ":"))
        with (self.folder / UNFINISHED).open("a", encoding="utf-8") as journal:
            journal.write(f"\n{line}")  # apart from one that was cut short

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of shapes into new shards, each written when it is full; the last one takes what remains."""
        remaining = iter(rows)
        while batch := list(islice(remaining, SHAPES_PER_SHARD)):
            numbers = (int(path.stem.rpartition("-")[2]) for path in self.folder.glob(_SHARDS))
            shard = self.folder / _SHARD.format(max(numbers, default=-1) + 1)
            table = pa.Table.from_pylist(batch, schema=self._schema)
            write_table(shard, table)
            self._take_in(shard, table)

    def finish(self, given: Collection[str], refused: Iterable[str] = ()) -> int:
        """Take out the rows of meshes that have changed since: other rows replaced them, or they are refused now.

        What an interrupted run noted of meshes that this one was not `given` comes in. Returns how many rows went.
        """
        self.append(row for name, row in self._journal.items() if name not in given and "reason" not in row)
        for name in refused:
            if (old := self.written.pop(name, None)) is not None:
                self._stale[old.shard].add(name)
        for shard, names in self._stale.items():
            table = read_table(shard, remedy=SHARD_REMEDY)
            kept = table.filter(pc.invert(pc.is_in(table["name"], pa.array(sorted(names), pa.string()))))
            if len(kept):
                write_table(shard, kept)
            else:
                shard.unlink()
        (self.folder / UNFINISHED).unlink(missing_ok=True)
        return sum(map(len, self._stale.values()))

    def _take_in(self, shard: Path, table: pa.Table) -> None:
        columns = (table[column].to_pylist() for column in ("name", "mesh_sha256", "length"))
        for name, mesh_sha256, length in zip(*columns, strict=True):
            if name in self.written:
                self._stale[self.written[name].shard].add(name)
            self.written[name] = Written(mesh_sha256, length, shard)

    def _read_journal(self) -> Iterator[dict[str, Any]]:
        path = self.folder / UNFINISHED
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    _, _, fingerprint = row["name"], row["mesh_sha256"], row["fingerprint"]
                except (ValueError, KeyError, TypeError):  # cut short, or the empty line at the beginning
                    continue
                self._check(path, fingerprint)
                yield row

    def _check(self, path: Path, fingerprint: str) -> None:
        if fingerprint != self.fingerprint:
            raise InputError(
                f"{path} is of tokenizer {fingerprint or 'unknown'} but this is {self.fingerprint}; name another "
                "folder, or use the tokenizer that made it"
            )


@contextmanager
def open_dataset(folder: Path, tokenizer: SequenceTokenizer) -> Iterator[Dataset]:
    """The data set of a folder, which is made if it is not there.

    Raises InputError for one of another tokenizer, of which a shard is damaged, or that another process adds to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is adding to it; wait for its end, or name another") from None
        yield Dataset(folder, tokenizer)
    finally:
        os.close(handle)


def is_of_sequences(path: Path) -> bool:
    """Whether a Parquet file has a column of flat sequences; not, if it can't be read."""
    try:
        return "tokens" in pq.read_schema(path).names
    except Exception as error:
        if is_of_environment(error):
            raise
        return False


def read_sequences(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table with a column "tokens", as those of JSON lines; what a row has not, it has no key for.

    Raises InputError naming the file where it is damaged.
    """
    with reading(path, REMEDY), pq.ParquetFile(path, page_checksum_verification=True) as file:
        columns = [name for name in _NEEDED_TO_DECODE if name in file.schema_arrow.names]
        for batch in file.iter_batches(64, columns=columns, use_threads=False):
            for row in batch.to_pylist():
                yield {key: value for key, value in row.items() if value is not None}
