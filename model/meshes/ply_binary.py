"""The rows of a PLY's elements in binary."""

import struct
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from .ply_header import Column, Element, Header, Property, refuse_cut
from .raw import damaged, runs

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

    def finish(self) -> int:
        """How many bytes follow the last row. Raises InputError if they may be rows."""
        rest = self._content[self._place :].strip(b"\0\t\n\r ")
        if len(rest) >= _FEW:
            raise damaged(
                f"the file has {len(self._content) - self._place} bytes more than its header declares rows for"
            )
        return len(rest)

    def _uniform(self, element: Element, names: Sequence[str]) -> list[Column] | None:
        """The columns if every list is as long as the first row's; else None, and the element is still the next."""
        sizes, fields, place = list[int](), list[tuple](), self._place
        for number, one in enumerate(element.properties):
            size = 1
            if one.count_type:
                count = np.dtype(one.count_type)
                if place + count.itemsize > len(self._content):
                    refuse_cut(element)
                size = max(0, int(np.frombuffer(self._content, count, 1, place)[0]))
                place += count.itemsize
                fields.append((f"count {number}", count))
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

    def _ragged(self, element: Element, names: Sequence[str]) -> list[Column]:
        """The columns of rows with lists of many lengths: where each row begins, only the one before says."""
        gaps = _gaps(element)
        lists = [one for one in element.properties if one.count_type]
        steps = [
            (gap, struct.Struct(_code(one.count_type)), one.num_bytes) for gap, one in zip(gaps, lists, strict=False)
        ]
        starts, content, place = list[int](), self._content, self._place
        try:
            while len(starts) < element.num_rows:
                starts.append(place)
                for gap, unpacker, size in steps:
                    (count,) = unpacker.unpack_from(content, place + gap)
                    place += gap + unpacker.size + count * size
                place += gaps[-1]
        except struct.error:
            refuse_cut(element, len(starts) - 1)
        if place > len(content):
            refuse_cut(element, element.num_rows - 1)
        self._place = place
        runs_of, _ = element.runs(np.array(starts), self._counts)
        least = min(int(counts.min()) for _, counts in runs_of)
        if least < 0:
            raise damaged(f"element {element.name} has a list of {least} values")
        columns = []
        for number in map(element.number_of, names):
            one, (begins, counts) = element.properties[number], runs_of[number]
            places = np.repeat(begins, counts) + runs(np.zeros_like(counts), counts) * one.num_bytes
            columns.append(Column(self._values(places, one.type), counts))
        return columns

    def _counts(self, at: Int[np.ndarray, " num_rows"], one: Property) -> Int[np.ndarray, " num_rows"]:
        return self._values(at, one.count_type).astype(np.int64)

    def _values(self, at: Int[np.ndarray, " num_values"], type_: str) -> Shaped[np.ndarray, " num_values"]:
        """The values of a type that begin at these bytes."""
        content = np.frombuffer(self._content, np.uint8)
        return content[at[:, None] + np.arange(np.dtype(type_).itemsize)].reshape(-1).view(type_)


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
