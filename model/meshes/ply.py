"""PLY (Turk, 1994), as text and binary of either byte order: elements of rows, each with the header's properties.

Vertices and faces are what a mesh has; triangle strips are read too. Every row that the header declares must be there,
and nothing else.
"""

import re
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..errors import InputError, printable
from .mesh import Faces, Vertices
from .polygons import Polygons, triangulate
from .raw import RawMesh, check_indices, cut, damaged, runs, whole_numbers
from .text import Lines, whole_text

# What types are called, and what numpy calls them.
_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
_TYPES |= {f"{sign}int{8 * size}": f"{sign or 'i'}{size}" for sign in ("", "u") for size in (1, 2, 4, 8)}
_COUNTS = {name for name, type_ in _TYPES.items() if type_[0] in "iu"}  # types of lists' lengths
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LISTS = ("vertex_indices", "vertex_index")
_FEW = 8  # bytes after the last row of a binary that may be anything
_CODES = dict(zip(("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"), "bBhHiIqQ", strict=True))  # in struct's words


class _Property(NamedTuple):
    name: str
    type: str  # of a value, as numpy writes it, in the file's byte order: "<f4"
    count_type: str = ""  # of a list: that of its length

    @property
    def num_bytes(self) -> int:
        """Of one value."""
        return int(self.type[-1])


_Run = tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_rows"]]
_CountsAt = Callable[[Int[np.ndarray, " num_rows"], _Property], Int[np.ndarray, " num_rows"]]


class _Element(NamedTuple):
    name: str
    num_rows: int
    properties: list[_Property]

    def number_of(self, name: str) -> int:
        """A property's place in a row. Raises InputError if there is none of this name, or more than one."""
        names = [one.name for one in self.properties]
        if names.count(name) != 1:
            raise InputError(
                f"its element {self.name} has {', '.join(names)}; expected {name} among them, once; export it again"
            )
        return names.index(name)

    def runs(
        self, starts: Int[np.ndarray, " num_rows"], counts_at: _CountsAt, *, in_words: bool = False
    ) -> tuple[list[_Run], Int[np.ndarray, " num_rows"]]:
        """Of each property, where its values begin in each row and how many there are; and where the rows end.

        In bytes, or in words, given where rows start and what reads the lengths of lists.
        """
        found, at = list[_Run](), starts
        for one in self.properties:
            counts = np.ones_like(at)
            if one.count_type:
                counts = counts_at(at, one)
                at = at + (1 if in_words else np.dtype(one.count_type).itemsize)
            found.append((at, counts))
            at = at + counts * (1 if in_words else one.num_bytes)
        return found, at


class _Column(NamedTuple):
    """A property of all rows of an element."""

    values: np.ndarray  # of the first row, the second, ...
    counts: Int[np.ndarray, " num_rows"]  # how many of them are of each row: 1, or the lengths of lists


class _Header(NamedTuple):
    elements: list[_Element]
    is_text: bool
    length: int  # in bytes, up to the first row
    num_lines: int


def read(content: bytes) -> RawMesh:
    """Raises InputError where rows are missing, too many or not as the header declares."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    header = _read_header(content)
    rows = _TextRows(content, header) if header.is_text else _BinaryRows(content, header)
    vertices, polygons, strips, notes = list[Vertices](), list[Polygons](), list[Polygons](), Counter[str]()
    for element in header.elements:
        if element.name == "vertex":
            is_empty = not element.num_rows or not element.properties
            vertices.append(np.zeros((0, 3)) if is_empty else _positions(rows.read(element, ("x", "y", "z"))))
        elif element.name in ("face", "tristrips") and element.num_rows:
            name = next((p.name for p in element.properties if p.name in _LISTS and p.count_type), None)
            if name is None:
                raise InputError(
                    f"its element {element.name} has no list called vertex_indices; expected one; export it again"
                )
            column = rows.read(element, (name,))[0]
            found = Polygons(whole_numbers(column.values, f"its element {element.name} names"), column.counts)
            (polygons if element.name == "face" else strips).append(found)
        else:
            if element.num_rows and element.properties:
                rows.read(element, ())
            notes[f"rows of element {element.name} ignored"] += element.num_rows
    notes["bytes after the last row ignored"] = rows.finish()
    if len(vertices) != 1:
        raise InputError(f"it has {len(vertices)} elements called vertex; expected one; export it again")
    triangles = []
    for found in polygons:
        check_indices(found.corners, len(vertices[0]), "a face names")
        faces, more_notes = triangulate(vertices[0], found)
        triangles.append(faces)
        notes.update(more_notes)
    triangles += [_of_strips(strip, len(vertices[0])) for strip in strips]
    if not sum(map(len, triangles)):
        names = ", ".join(f"{element.name} ({element.num_rows})" for element in header.elements)
        raise InputError(f"the file holds no faces, only {names}; expected triangles; export it as a surface")
    return RawMesh(vertices[0], np.concatenate(triangles), notes)


def _positions(columns: Sequence[_Column]) -> Vertices:
    single = all(column.values.dtype in (np.dtype("<f4"), np.dtype(">f4")) for column in columns)
    return np.stack([column.values.astype(np.float32 if single else np.float64) for column in columns], 1)


def _of_strips(strips: Polygons, num_vertices: int) -> Faces:
    """The triangles of strips, in each of which -1 begins another one; every second is wound the other way."""
    ends = np.cumsum(strips.sizes)
    vertices = np.insert(strips.corners, ends, -1)
    check_indices(vertices[vertices != -1], num_vertices, "a strip names")
    place = np.arange(len(vertices))
    begin = np.maximum.accumulate(np.where(vertices == -1, place + 1, 0))
    triangles = np.stack([vertices[:-2], vertices[1:-1], vertices[2:]], 1)
    odd = ((place - begin)[:-2] % 2).astype(bool)
    triangles[odd] = triangles[odd][:, ::-1]
    return triangles[(triangles >= 0).all(1)]


def _read_header(content: bytes) -> _Header:
    """Raises InputError with the line that is not as the format says."""
    only_cr = re.match(rb"ply[ \t]*\r(?!\n)", content)  # then a newline after the last line is data
    end = re.search(rb"[\r\n][ \t]*end_header[ \t]*" + (rb"(\r|\Z)" if only_cr else rb"(\r*\n|\r|\Z)"), content)
    if end is None:
        raise InputError("the header has no line end_header; the file is cut or no PLY; export it again")
    lines = [line.split() for line in re.split(r"\r\n|\r|\n", content[: end.end()].decode("latin-1"))]
    order, elements = None, list[_Element]()
    for number, words in enumerate(lines[1:], start=2):
        match words:
            case [] | ["comment" | "obj_info" | "end_header", *_]:
                pass
            case ["format", ("ascii" | "binary_little_endian" | "binary_big_endian") as name, *_]:
                order = _BYTE_ORDERS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append(_Element(printable(name), int(count), []))
            case ["property", "list", count_type, type_, name] if (
                count_type in _COUNTS and type_ in _TYPES and elements
            ):
                elements[-1].properties.append(_Property(name, _TYPES[type_], _TYPES[count_type]))
            case ["property", type_, name] if type_ in _TYPES and elements:
                elements[-1].properties.append(_Property(name, _TYPES[type_]))
            case _:
                raise InputError(
                    f"line {number}: got {' '.join(words)[:60]!r}, which no header of a PLY has; correct it"
                )
    if order is None:
        raise InputError("the header has no line that begins with format ascii or format binary; export it again")
    for element in elements:  # the format may be said after them
        element.properties[:] = [
            _Property(name, order + type_, order + count_type if count_type else "")
            for name, type_, count_type in element.properties
        ]
    return _Header(elements, order == "", end.end(), len(lines) - 1)


def _refuse_cut(element: _Element, num_found: int | None = None) -> NoReturn:
    """Raise InputError: the file ends before the rows that an element declares."""
    found = "before its rows are complete" if num_found is None else f"after {num_found}"
    raise cut(f"the header declares {element.num_rows} rows of element {element.name} but the file ends {found}")


class _TextRows:
    """Elements in the order of the header, each row on a line, or the rows over any number of lines.

    In the second case only the number of all words shows that none is missing.
    """

    def __init__(self, content: bytes, header: _Header) -> None:
        self._lines = Lines(whole_text(content[header.length :]), first=header.num_lines + 1)
        rows = self._lines.rows(np.ones(len(self._lines), bool))
        self._values: Float[np.ndarray, " num_words"] = rows.all_floats()
        self._first: Int[np.ndarray, " num_lines_and_1"] = rows.first
        self._num_rows = sum(element.num_rows for element in header.elements if element.properties)
        self._by_line = len(self._lines) == self._num_rows
        self._line, self._word = 0, 0  # the next

    def read(self, element: _Element, names: Sequence[str]) -> list[_Column]:
        """The next element's columns of these names, after which the one after it is next."""
        if self._by_line:
            self._line += element.num_rows
            starts = self._first[self._line - element.num_rows : self._line]
        else:
            starts = self._starts_in_stream(element)
        runs_of, at = element.runs(starts, lambda places, _: self._counts(places, element), in_words=True)
        ends = np.append(starts[1:], self._first[self._line] if self._by_line else self._word)
        if self._by_line and (at != ends).any():
            row = int(np.argmax(at != ends))
            raise InputError(
                f"line {self._lines.number(self._line - element.num_rows + row)}: a row of element {element.name} has "
                f"{ends[row] - starts[row]} words; the header declares {at[row] - starts[row]}; export it again"
            )
        columns = []
        for number in map(element.number_of, names):
            begins, counts = runs_of[number]
            values = self._values[runs(begins, counts)]
            if element.properties[number].type == "f4":  # a float written with seven digits is that float again
                with np.errstate(over="ignore"):
                    values = values.astype(np.float32)
            columns.append(_Column(values, counts))
        return columns

    def finish(self) -> int:
        """Of bytes after the last row, which are none. Raises InputError if words follow it."""
        if self._word != len(self._values) and not self._by_line:
            raise damaged(f"more words follow the {self._num_rows} rows that the header declares")
        return 0

    def _starts_in_stream(self, element: _Element) -> Int[np.ndarray, " num_rows"]:
        """Where the rows begin, each of which only the one before says."""
        lists = [number for number, one in enumerate(element.properties) if one.count_type]
        values, word = self._values, self._word
        room = len(values) - word
        if element.num_rows * len(element.properties) > room:
            _refuse_cut(element, room // len(element.properties))
        starts = np.empty(element.num_rows, np.int64)
        for row in range(element.num_rows):
            starts[row] = word
            longer = 0  # than without the lists' values
            for number in lists:
                if word + number + longer >= len(values):
                    _refuse_cut(element, row)
                longer += int(self._counts(np.array([word + number + longer]), element)[0])
            word += len(element.properties) + longer
            if word > len(values):
                _refuse_cut(element, row)
        self._word = word
        return starts

    def _counts(self, at: Int[np.ndarray, " num_rows"], element: _Element) -> Int[np.ndarray, " num_rows"]:
        """The lengths of lists whose lengths are these words."""
        counts = self._values[np.minimum(at, len(self._values) - 1)]
        wrong = ~((counts >= 0) & (counts == np.floor(counts)) & (counts <= len(self._values)))
        if wrong.any():
            raise damaged(
                f"element {element.name} has a list of {counts[wrong][0]:g} values; expected a whole number of them"
            )
        return counts.astype(np.int64)


class _BinaryRows:
    """Elements in the order of the header."""

    def __init__(self, content: bytes, header: _Header) -> None:
        self._content, self._place = content, header.length

    def read(self, element: _Element, names: Sequence[str]) -> list[_Column]:
        """The next element's columns of these names, after which the one after it is next."""
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

    def _uniform(self, element: _Element, names: Sequence[str]) -> list[_Column] | None:
        """The columns if every list is as long as the first row's; else None, and the element is still the next."""
        sizes, fields, place = list[int](), list[tuple](), self._place
        for number, one in enumerate(element.properties):
            size = 1
            if one.count_type:
                count = np.dtype(one.count_type)
                if place + count.itemsize > len(self._content):
                    _refuse_cut(element)
                size = max(0, int(np.frombuffer(self._content, count, 1, place)[0]))
                place += count.itemsize
                fields.append((f"count {number}", count))
            sizes.append(size)
            fields.append((f"value {number}", one.type, (size,)))
            place += size * one.num_bytes
        if element.num_rows * (place - self._place) > len(self._content) - self._place:
            return None if any(one.count_type for one in element.properties) else _refuse_cut(element)
        rows = np.frombuffer(self._content, np.dtype(fields), count=element.num_rows, offset=self._place)
        for number, one in enumerate(element.properties):
            if one.count_type and (rows[f"count {number}"] != sizes[number]).any():
                return None
        self._place += rows.nbytes
        numbers = [element.number_of(name) for name in names]
        return [_Column(rows[f"value {i}"].reshape(-1), np.full(element.num_rows, sizes[i])) for i in numbers]

    def _ragged(self, element: _Element, names: Sequence[str]) -> list[_Column]:
        """The columns of rows with lists of many lengths: where each row begins, only the one before says."""
        steps, gap = list[tuple[int, struct.Struct, int]](), 0  # of each list; bytes of other properties before it
        for one in element.properties:
            if one.count_type:
                steps.append((gap, struct.Struct(one.count_type[0] + _CODES[one.count_type[1:]]), one.num_bytes))
                gap = 0
            else:
                gap += one.num_bytes
        starts, content, place = list[int](), self._content, self._place
        try:
            while len(starts) < element.num_rows:
                starts.append(place)
                for before, unpacker, size in steps:
                    (count,) = unpacker.unpack_from(content, place + before)
                    place += before + unpacker.size + count * size
                place += gap
        except struct.error:
            _refuse_cut(element, len(starts) - 1)
        if place > len(content):
            _refuse_cut(element, element.num_rows - 1)
        self._place = place
        runs_of, _ = element.runs(np.array(starts), self._counts)
        least = min(int(counts.min()) for _, counts in runs_of)
        if least < 0:
            raise damaged(f"element {element.name} has a list of {least} values")
        columns = []
        for number in map(element.number_of, names):
            one, (begins, counts) = element.properties[number], runs_of[number]
            places = np.repeat(begins, counts) + runs(np.zeros_like(counts), counts) * one.num_bytes
            columns.append(_Column(self._values(places, one.type), counts))
        return columns

    def _counts(self, at: Int[np.ndarray, " num_rows"], one: _Property) -> Int[np.ndarray, " num_rows"]:
        return self._values(at, one.count_type).astype(np.int64)

    def _values(self, at: Int[np.ndarray, " num_values"], type_: str) -> Shaped[np.ndarray, " num_values"]:
        """The values of a type that begin at these bytes."""
        content = np.frombuffer(self._content, np.uint8)
        return content[at[:, None] + np.arange(np.dtype(type_).itemsize)].reshape(-1).view(type_)
