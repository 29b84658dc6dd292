"""The rows of a PLY's elements as text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from .ply_header import Column, Element, Header, Property, refuse_cut
from .raw import damaged, runs
from .text import Lines, whole_text


class TextRows:
    """Elements in the order of the header, each row on a line, or the rows over any number of lines.

    In the second case only the number of all words shows that none is missing.
    """

    def __init__(self, content: bytes, header: Header) -> None:
        self._lines = Lines(whole_text(content[header.length :]), first=header.num_lines + 1)
        rows = self._lines.rows(np.ones(len(self._lines), bool))
        self._values: Float[np.ndarray, " num_words"] = rows.all_floats()
        self._first: Int[np.ndarray, " num_lines_and_1"] = rows.first
        self._num_rows = sum(element.num_rows for element in header.elements if element.properties)
        self._by_line = len(self._lines) == self._num_rows
        self._line, self._word = 0, 0  # the next

    def read(self, element: Element, names: Sequence[str]) -> list[Column]:
        """The next element's columns of these names, after which the one after it is next."""
        if not element.num_rows or not element.properties:
            return [Column.empty() for _ in names]
        starts = self._starts_by_line(element) if self._by_line else self._starts_in_stream(element)
        runs_of, at = element.runs(starts, lambda places, _: self._counts(places, element), in_words=True)
        ends = np.append(starts[1:], self._first[self._line] if self._by_line else self._word)
        if self._by_line and (at != ends).any():
            row = int(np.argmax(at != ends))
            raise InputError(
                f"line {self._lines.number(self._line - element.num_rows + row)}: a row of element {element.name} has "
                f"{ends[row] - starts[row]} words; the header declares {at[row] - starts[row]}; export it again"
            )
        numbers = [element.number_of(name) for name in names]
        return [self._column(element.properties[number], *runs_of[number]) for number in numbers]

    def _column(
        self, one: Property, begins: Int[np.ndarray, " num_rows"], counts: Int[np.ndarray, " num_rows"]
    ) -> Column:
        """Values in the precision that the header declares: a float written with seven digits is that float again."""
        values = self._values[runs(begins, counts)]
        with np.errstate(over="ignore"):
            return Column(values.astype(np.float32) if one.type == "f4" else values, counts)

    def finish(self) -> int:
        """Of bytes after the last row, which are none. Raises InputError if words follow it."""
        if self._word != len(self._values) and not self._by_line:
            raise damaged(f"more words follow the {self._num_rows} rows that the header declares")
        return 0

    def _starts_by_line(self, element: Element) -> Int[np.ndarray, " num_rows"]:
        self._line += element.num_rows
        return self._first[self._line - element.num_rows : self._line]

    def _starts_in_stream(self, element: Element) -> Int[np.ndarray, " num_rows"]:
        """Where the rows begin, each of which only the one before says."""
        lists = [number for number, one in enumerate(element.properties) if one.count_type]
        values, word = self._values, self._word
        room = len(values) - word
        if element.num_rows * len(element.properties) > room:
            refuse_cut(element, room // len(element.properties))
        starts = np.empty(element.num_rows, np.int64)
        for row in range(element.num_rows):
            starts[row] = word
            longer = 0  # than without the lists' values
            for number in lists:
                if word + number + longer >= len(values):
                    refuse_cut(element, row)
                longer += int(self._counts(np.array([word + number + longer]), element)[0])
            word += len(element.properties) + longer
            if word > len(values):
                refuse_cut(element, row)
        self._word = word
        return starts

    def _counts(self, at: Int[np.ndarray, " num_rows"], element: Element) -> Int[np.ndarray, " num_rows"]:
        """The lengths of lists whose lengths are these words."""
        counts = self._values[np.minimum(at, len(self._values) - 1)]
        wrong = ~((counts >= 0) & (counts == np.floor(counts)) & (counts <= len(self._values)))
        if wrong.any():
            raise damaged(
                f"element {element.name} has a list of {counts[wrong][0]:g} values; expected a whole number of them"
            )
        return counts.astype(np.int64)
