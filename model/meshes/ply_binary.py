"""The rows of a PLY's elements in binary."""

import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ..errors import InputError
from .numbering import runs
from .ply_header import Column, Element, Header, Property, refuse_cut

_FEW = 8  # bytes after the last row that may be anything


class BinaryRows:
    """Elements in the order of the header."""

    def __init__(self, content: bytes, header: Header) -> None:
        self._content, self._place = content, header.length

    def read(self, element: Element, names: Sequence[str]) -> list[Column]:
        """The next element's columns of these names, after which the one after it is next."""
        if not element.num_rows or not element.properties:
            return [Column.empty() for _ in names]
        columns = self._uniform(element, names)
        return self._ragged(element, names) if columns is None else columns

    def finish(self) -> list[str]:
        """Notes of what follows the last row. Raises InputError if that may be rows."""
        rest = self._content[self._place :].strip(b"\0\t\n\r ")
        if len(rest) >= _FEW:
            raise InputError(
                f"the file has {len(self._content) - self._place} bytes more than its header declares rows for; it is "
                "damaged; export it again"
            )
        return [f"bytes after the last row ignored: {len(rest)}"] if rest else []

    def _uniform(self, element: Element, names: Sequence[str]) -> list[Column] | None:
        """The columns if every list is as long as the first row's; else None, and the element is still the next."""
        sizes, fields, place = list[int](), list[tuple](), self._place
        for number, one in enumerate(element.properties):
            size = 1
            if one.count_type:
                size, place = self._length_of_list(element, one, place)
                fields.append((f"count {number}", one.count_type))
            sizes.append(size)
            fields.append((f"value {number}", one.type, (size,)))
            place += size * one.num_bytes
        if element.num_rows * (place - self._place) > len(self._content) - self._place:
            return None if element.has_lists else refuse_cut(element)
        rows = np.frombuffer(self._content, np.dtype(fields), count=element.num_rows, offset=self._place)
        for number, one in enumerate(element.properties):
            if one.count_type and (rows[f"count {number}"] != sizes[number]).any():
                return None
        self._place += rows.nbytes
        numbers = [element.number_of(name) for name in names]
        return [Column(rows[f"value {i}"].reshape(-1), np.full(element.num_rows, sizes[i])) for i in numbers]

    def _length_of_list(self, element: Element, one: Property, place: int) -> tuple[int, int]:
        """The length at a place, and where the values after it begin."""
        unpacker = struct.Struct(_code(one.count_type))
        if place + unpacker.size > len(self._content):
            refuse_cut(element)
        return max(0, unpacker.unpack_from(self._content, place)[0]), place + unpacker.size

    def _ragged(self, element: Element, names: Sequence[str]) -> list[Column]:
        """The columns of rows with lists of many lengths: where each begins, only the one before says."""
        lists = [one for one in element.properties if one.count_type]
        gaps = _gaps(element)
        steps = [
            (gap, struct.Struct(_code(one.count_type)), one.num_bytes) for gap, one in zip(gaps, lists, strict=False)
        ]
        found, content, place, num_found = list[int](), self._content, self._place, 0
        try:
            while num_found < element.num_rows:
                found.append(place)
                for gap, unpacker, size in steps:
                    (count,) = unpacker.unpack_from(content, place + gap)
                    place += gap + unpacker.size
                    found += (place, count)
                    place += count * size
                place += gaps[-1]
                num_found += 1
        except struct.error:
            refuse_cut(element, num_found)
        if place > len(content):
            refuse_cut(element, num_found - 1)
        self._place = place
        table = np.array(found).reshape(element.num_rows, -1)
        counts = table[:, 2::2]
        if counts.min() < 0:
            raise InputError(
                f"element {element.name} has a list of {counts.min()} values; the file is damaged; export it again"
            )
        return [self._column(element, table, element.number_of(name)) for name in names]

    def _column(self, element: Element, table: Int[np.ndarray, "num_rows width"], number: int) -> Column:
        """One property, from a table of where each row and each list's values begin and how long the lists are."""
        one, before = element.properties[number], element.properties[:number]
        list_number = sum(bool(other.count_type) for other in before)
        if one.count_type:
            begins, counts = table[:, 1 + 2 * list_number], table[:, 2 + 2 * list_number]
        else:
            counts = np.ones(len(table), np.int64)
            begins = table[:, 0].copy()
            for other in before:
                begins += other.num_bytes if not other.count_type else 0
            for other, place in zip([o for o in before if o.count_type], range(1, 2 * list_number, 2), strict=True):
                begins += np.dtype(other.count_type).itemsize + table[:, place + 1] * other.num_bytes
        first = _stepped(begins, counts, one.num_bytes)
        content = np.frombuffer(self._content, np.uint8)
        return Column(content[first[:, None] + np.arange(one.num_bytes)].reshape(-1).view(one.type), counts)


def _stepped(
    begins: Int[np.ndarray, " num_runs"], lengths: Int[np.ndarray, " num_runs"], step: int
) -> Int[np.ndarray, " num_all"]:
    """As runs, in steps of so many."""
    number = runs(np.zeros_like(lengths), lengths)
    return np.repeat(begins, lengths) + number * step


def _gaps(element: Element) -> list[int]:
    """The bytes of the other properties before each list, and after the last one."""
    gaps = [0]
    for one in element.properties:
        if one.count_type:
            gaps.append(0)
        else:
            gaps[-1] += one.num_bytes
    return gaps


def _code(type_: str) -> str:
    """numpy's name of a type of integers, "<u4", as struct writes it."""
    code = {"1": "b", "2": "h", "4": "i", "8": "q"}[type_[2]]
    return type_[0] + (code if type_[1] == "i" else code.upper())
