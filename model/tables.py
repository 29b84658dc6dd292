"""Parquet files, written whole, with digests that are checked wherever they are read.

The checksums of Parquet's pages cover neither the pages' headers nor the footer: a flipped bit there can change values.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import InputError, is_of_environment
from .files import DIGEST, digest_of, is_as_written, whole_file


def write_table(path: Path, table: pa.Table) -> None:
    """A table with one digest over all of it, in its metadata."""
    digest = digest_of(_parts(table))
    with whole_file(path) as partial:
        sealed = table.replace_schema_metadata({**(table.schema.metadata or {}), DIGEST: digest})
        pq.write_table(sealed, partial, compression="zstd", write_page_checksum=True)


def read_table(path: Path, *, remedy: str, ours: bool = True) -> pa.Table:
    """What write_table wrote; one that is not `ours` may have no digest.

    Raises InputError, which ends in the remedy, where it is missing or damaged.
    """
    with _damage_told(path, remedy):
        table = pq.read_table(path, page_checksum_verification=True)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        carried = {key: metadata.pop(key) for key in [*metadata] if key == DIGEST}
        table = table.replace_schema_metadata(metadata)
        if not is_as_written(metadata | carried, digest_of(_parts(table)), required=ours):
            raise ValueError("its content is not what its digest says")
        return table


def write_rows(path: Path, rows: Iterable[pa.RecordBatch], schema: pa.Schema | None = None) -> int:
    """A row group for each batch, which has one row and gets a digest of its own. Returns how many there are.

    They are taken one by one. All have the schema of the first; with none, one has to be given.
    """
    num_groups = 0
    writer: pq.ParquetWriter | None = None
    with whole_file(path) as partial:
        try:
            for row in rows:
                sealed = row.append_column(DIGEST, pa.array([digest_of(_parts(row, num_groups))]))
                writer = writer or _open_writer(partial, sealed.schema)
                writer.write_batch(sealed)
                num_groups += 1
            if writer is None:
                if schema is None:
                    raise ValueError(f"nothing to write into {path}, and no schema to write nothing with")
                writer = _open_writer(partial, schema.append(pa.field(DIGEST, pa.string())))
        finally:
            if writer is not None:
                writer.close()
    return num_groups


def _open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    floats = [f"{column.name}.list.element" for column in schema if column.type == pa.list_(pa.float32())]
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    return pq.ParquetWriter(path, schema, use_byte_stream_split=floats, **options)


def read_row(path: Path, group: int, *, remedy: str) -> pa.RecordBatch:
    """One row of write_rows. Raises InputError, which ends in the remedy, where it is missing or damaged."""
    with _damage_told(path, remedy), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return _row(file, group)


def read_rows(path: Path, *, remedy: str) -> Iterator[pa.RecordBatch]:
    """All of them, one after the other; raises as read_row does."""
    with _damage_told(path, remedy):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if file.metadata.num_rows != file.num_row_groups:  # no digest is over how many there are
            raise ValueError(f"it tells of {file.num_row_groups} row groups and of {file.metadata.num_rows} rows")
    with file:
        for group in range(file.num_row_groups):
            with _damage_told(path, remedy):
                row = _row(file, group)
            yield row


def _row(file: pq.ParquetFile, group: int) -> pa.RecordBatch:
    (row,) = file.read_row_group(group, use_threads=False).combine_chunks().to_batches()
    carried = row.column(DIGEST)[0].as_py()
    row = row.drop_columns([DIGEST])
    if not is_as_written({DIGEST: carried}, digest_of(_parts(row, group)), required=True):
        raise ValueError(f"the content of row group {group} is not what its digest says")
    return row


@contextmanager
def _damage_told(path: Path, remedy: str) -> Iterator[None]:
    """Whatever a damaged file makes of Parquet's reader, as an InputError."""
    try:
        yield
    except Exception as error:
        if is_of_environment(error):
            raise
        if not path.is_file():
            raise InputError(f"{path} does not exist; {remedy}") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path} can't be read ({reason}); {remedy}") from error


def _parts(rows: pa.Table | pa.RecordBatch, place: int = 0) -> Iterator[str | bytes | memoryview]:
    """What the digest of rows is over: their place, metadata, names, and every value."""
    yield str(place)
    for key, value in sorted((rows.schema.metadata or {}).items()):
        yield from (key, value)
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        yield name
        yield from _values(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


def _values(array: Any) -> Iterator[str | memoryview]:
    """Every value of an Arrow array as bytes, whatever lies in its buffers beside them."""
    yield f"{len(array)} {array.null_count}"
    if array.null_count:
        yield _bytes(array.is_valid())
    if pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type):
        yield _bytes(pc.list_value_length(array).fill_null(0))
        yield from _values(array.flatten())
    elif pa.types.is_primitive(array.type):
        yield str(array.type)
        yield _bytes(array.fill_null(0) if array.null_count else array)
    else:
        text = array.cast(pa.large_binary())
        yield _bytes(pc.binary_length(text).fill_null(0))
        yield memoryview(b"".join(text.drop_null().to_pylist()))


def _bytes(array: Any) -> memoryview:
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data
