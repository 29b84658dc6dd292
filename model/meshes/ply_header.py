"""The header of a PLY: what the rows after it are."""

import re
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import numpy as np
from jaxtyping import Int

from ..errors import InputError, printable
from .raw import cut

# What types are called, and what numpy calls them.
_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
_TYPES |= {f"{sign}int{8 * size}": f"{sign or 'i'}{size}" for sign in ("", "u") for size in (1, 2, 4, 8)}
_COUNTS = {name for name, type_ in _TYPES.items() if type_[0] in "iu"}  # types of lists' lengths
_BYTE_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}


class Property(NamedTuple):
    name: str
    type: str  # of a value, as numpy writes it, in the file's byte order: "<f4"
    count_type: str = ""  # of a list: that of its length

    @property
    def num_bytes(self) -> int:
        """Of one value."""
        return int(self.type[-1])


Run = tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_rows"]]
CountsAt = Callable[[Int[np.ndarray, " num_rows"], Property], Int[np.ndarray, " num_rows"]]


class Element(NamedTuple):
    name: str
    num_rows: int
    properties: list[Property]

    @property
    def has_lists(self) -> bool:
        return any(one.count_type for one in self.properties)

    def number_of(self, name: str) -> int:
        """A property's place in a row. Raises InputError if there is none of this name, or more than one."""
        names = [one.name for one in self.properties]
        if names.count(name) != 1:
            raise InputError(
                f"its element {self.name} has {', '.join(names)}; expected {name} among them, once; export it again"
            )
        return names.index(name)

    def runs(
        self, starts: Int[np.ndarray, " num_rows"], counts_at: CountsAt, *, in_words: bool = False
    ) -> tuple[list[Run], Int[np.ndarray, " num_rows"]]:
        """Of each property, where its values begin in each row and how many there are; and where the rows end.

        In bytes, or in words, given where rows start and what reads the lengths of lists.
        """
        found, at = list[Run](), starts
        for one in self.properties:
            counts = np.ones_like(at)
            if one.count_type:
                counts = counts_at(at, one)
                at = at + (1 if in_words else np.dtype(one.count_type).itemsize)
            found.append((at, counts))
            at = at + counts * (1 if in_words else one.num_bytes)
        return found, at


class Column(NamedTuple):
    """A property of all rows of an element."""

    values: np.ndarray  # of the first row, the second, ...
    counts: Int[np.ndarray, " num_rows"]  # how many of them are of each row: 1, or the lengths of lists

    @staticmethod
    def empty() -> "Column":
        """Of no rows."""
        return Column(np.zeros(0, np.float32), np.zeros(0, np.int64))


class Header(NamedTuple):
    elements: list[Element]
    is_text: bool
    length: int  # in bytes, up to the first row
    num_lines: int


def read_header(content: bytes) -> Header:
    """Raises InputError with the line that is not as the format says."""
    only_cr = re.match(rb"ply[ \t]*\r(?!\n)", content)  # then a newline after the last line is data
    end = re.search(rb"[\r\n][ \t]*end_header[ \t]*" + (rb"(\r|\Z)" if only_cr else rb"(\r*\n|\r|\Z)"), content)
    if end is None:
        raise InputError("the header has no line end_header; the file is cut or no PLY; export it again")
    lines = [line.split() for line in re.split(r"\r\n|\r|\n", content[: end.end()].decode("latin-1"))]
    order, elements = None, list[Element]()
    for number, words in enumerate(lines[1:], start=2):
        match words:
            case [] | ["comment" | "obj_info" | "end_header", *_]:
                pass
            case ["format", ("ascii" | "binary_little_endian" | "binary_big_endian") as name, *_]:
                order = _BYTE_ORDERS[name]
            case ["element", name, count] if count.isdecimal():
                elements.append(Element(printable(name), int(count), []))
            case ["property", "list", count_type, type_, name] if (
                count_type in _COUNTS and type_ in _TYPES and elements
            ):
                elements[-1].properties.append(Property(name, _TYPES[type_], _TYPES[count_type]))
            case ["property", type_, name] if type_ in _TYPES and elements:
                elements[-1].properties.append(Property(name, _TYPES[type_]))
            case _:
                raise InputError(
                    f"line {number}: got {' '.join(words)[:60]!r}, which no header of a PLY has; correct it"
                )
    if order is None:
        raise InputError("the header has no line that begins with format ascii or format binary; export it again")
    for element in elements:  # the format may be said after them
        element.properties[:] = [
            Property(name, order + type_, order + count_type if count_type else "")
            for name, type_, count_type in element.properties
        ]
    return Header(elements, order == "", end.end(), len(lines) - 1)


def refuse_cut(element: Element, num_found: int | None = None) -> NoReturn:
    """Raise InputError: the file ends before the rows that an element declares."""
    found = "before its rows are complete" if num_found is None else f"after {num_found}"
    raise cut(f"the header declares {element.num_rows} rows of element {element.name} but the file ends {found}")
