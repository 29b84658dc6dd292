"""Parquet files, written whole, with digests that are checked wherever they are read.

The checksums of Parquet's pages cover neither the pages' headers nor the footer: a flipped bit there can change values.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from .errors import reading
from .files import DIGEST, digest_of, is_as_written, whole_file

if TYPE_CHECKING:
    import pandas as pd


class Row(NamedTuple):
    values: pa.RecordBatch  # of one row
    digest: str  # over them, their place, and what stands beside them


def write_table(path: Path, table: "pa.Table | pd.DataFrame", metadata: Mapping[str, object] | None = None) -> None:
    """A table, or a frame without its index; into its metadata go these, as text, and one digest over all of it."""
    if not isinstance(table, pa.Table):
        table = pa.Table.from_pandas(table, preserve_index=False)
    described = {key: str(value) for key, value in (metadata or {}).items()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **described})
    with whole_file(path) as partial:
        sealed = table.replace_schema_metadata({**(table.schema.metadata or {}), DIGEST: digest_of(_parts(table))})
        pq.write_table(sealed, partial, compression="zstd", write_page_checksum=True)


def metadata_of(rows: pa.Table | pa.RecordBatch) -> dict[str, str]:
    """What stands beside rows in a file, as text."""
    return {key.decode(): value.decode() for key, value in (rows.schema.metadata or {}).items()}


def read_table(path: Path, *, remedy: str, ours: bool = True) -> pa.Table:
    """What write_table wrote; one that is not `ours` may have no digest.

    Raises InputError, which ends in the remedy, where it is missing or damaged.
    """
    with reading(path, remedy):
        table = pq.read_table(path, page_checksum_verification=True)
        metadata = metadata_of(table)
        carried = {key: metadata.pop(key) for key in [*metadata] if key == DIGEST}
        table = table.replace_schema_metadata(metadata)
        if not is_as_written(metadata | carried, digest_of(_parts(table)), required=ours):
            raise ValueError("its content is not what its digest says")
        return table


def one_row(values: Iterable[object], schema: pa.Schema) -> pa.RecordBatch:
    """A value for each column."""
    columns = [pa.array([value], column.type) for value, column in zip(values, schema, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_rows(path: Path, rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> list[str]:
    """A row group for each batch, which has one row and gets a digest of its own. Returns the digests.

    They are taken one by one, and have this schema.
    """
    floats = [f"{column.name}.list.element" for column in schema if column.type == pa.list_(pa.float32())]
    options = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
    sealed = schema.append(pa.field(DIGEST, pa.string()))
    digests: list[str] = []
    with (
        whole_file(path) as partial,
        pq.ParquetWriter(partial, sealed, use_byte_stream_split=floats, **options) as writer,
    ):
        for row in rows:
            digests.append(digest_of(_parts(row, len(digests))))
            writer.write_batch(row.append_column(DIGEST, pa.array(digests[-1:])))
    return digests


def read_row(path: Path, group: int, *, remedy: str) -> Row:
    """One row of write_rows. Raises InputError, which ends in the remedy, where it is missing or damaged."""
    with reading(path, remedy), pq.ParquetFile(path, page_checksum_verification=True) as file:
        return _row(file, group)


def read_rows(path: Path, *, remedy: str) -> Iterator[pa.RecordBatch]:
    """The values of all, one after the other; raises as read_row does."""
    with reading(path, remedy):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        if file.metadata.num_rows != file.num_row_groups:  # no digest is over how many there are
            raise ValueError(f"it tells of {file.num_row_groups} row groups and of {file.metadata.num_rows} rows")
    with file:
        for group in range(file.num_row_groups):
            with reading(path, remedy):
                row = _row(file, group)
            yield row.values


def _row(file: pq.ParquetFile, group: int) -> Row:
    (row,) = file.read_row_group(group, use_threads=False).combine_chunks().to_batches()
    carried = row.column(DIGEST)[0].as_py()
    row = row.drop_columns([DIGEST])
    if not is_as_written({DIGEST: carried}, digest_of(_parts(row, group)), required=True):
        raise ValueError(f"the content of row group {group} is not what its digest says")
    return Row(row, carried)


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
