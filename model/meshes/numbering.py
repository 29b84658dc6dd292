"""Equal rows of an array get one number."""

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int, UInt, UInt64

_AT_ONCE = 2**15  # rows, so that what is worked on stays in the processor's cache
_MIX = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64
)  # odd, their bits in no pattern


def number_rows(
    rows: Float[np.ndarray, "num_rows 3"],
) -> tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_distinct"]]:
    """For each row its number, where equal rows have one, and for each number its first row.

    Numbers are in the order in which rows first appear. A table of 64-bit hashes is several times faster than sorting
    rows; that no two different rows have one hash is checked.
    """
    rows = np.ascontiguousarray(rows) + rows.dtype.type(0)  # -0 becomes 0
    bits = rows.view(np.uint32 if rows.dtype == np.float32 else np.uint64)
    groups = np.split(bits, range(_AT_ONCE, len(bits), _AT_ONCE))
    hashes = np.concatenate([_hashes(group) for group in groups])
    number = pa.array(hashes).dictionary_encode().indices.to_numpy()
    first = _first_of_each(number)
    ends = np.cumsum([len(group) for group in groups])
    distinct = bits[first]
    if len(first) < len(rows) and not all(
        np.array_equal(distinct[number[end - len(group) : end]], group) for group, end in zip(groups, ends, strict=True)
    ):
        _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        return _in_order_of_appearance(number.reshape(-1), first)
    return number.astype(np.int64), first


def _hashes(bits: UInt[np.ndarray, "num_rows 3"]) -> UInt64[np.ndarray, " num_rows"]:
    hashes = np.zeros(len(bits), np.uint64)
    for column, factor in zip(bits.T, _MIX, strict=True):
        hashes ^= column
        hashes *= factor
        hashes ^= hashes >> np.uint64(32)
    return hashes


def _first_of_each(number: Int[np.ndarray, " num_rows"]) -> Int[np.ndarray, " num_distinct"]:
    """Where each number appears first; numbers are in the order in which they appear."""
    highest = np.maximum.accumulate(number)
    return np.flatnonzero(np.append(highest[:1] == 0, highest[1:] != highest[:-1]))


def _in_order_of_appearance(
    number: Int[np.ndarray, " num_rows"], first: Int[np.ndarray, " num_distinct"]
) -> tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_distinct"]]:
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[number], first[order]


def runs(begins: Int[np.ndarray, " num_runs"], lengths: Int[np.ndarray, " num_runs"]) -> Int[np.ndarray, " num_all"]:
    """The whole numbers from each begin on, so many for each, one run after another."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
