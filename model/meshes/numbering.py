"""Equal rows of an array get one number; runs of numbers."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int


def number_rows(
    rows: Float[np.ndarray, "num_rows 3"],
) -> tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_distinct"]]:
    """For each row its number, where equal rows have one, and for each number its first row.

    Numbers are in the order in which rows first appear. A table of hashes of the rows' bytes is several times faster
    than sorting them.
    """
    rows = np.ascontiguousarray(rows) + rows.dtype.type(0)  # -0 becomes 0
    words = pa.FixedSizeBinaryArray.from_buffers(pa.binary(3 * rows.itemsize), len(rows), [None, pa.py_buffer(rows)])
    number = words.dictionary_encode().indices.to_numpy()
    highest = np.maximum.accumulate(number)
    first = np.flatnonzero(np.append(highest[:1] == 0, highest[1:] != highest[:-1]))
    return number.astype(np.int64), first


def runs(begins: Int[np.ndarray, " num_runs"], lengths: Int[np.ndarray, " num_runs"]) -> Int[np.ndarray, " num_all"]:
    """The whole numbers from each begin on, so many for each, one run after another."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
