"""Lines, words and numbers of text files as arrays: a million lines take tenths of a second."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from ..errors import InputError

_BLANK = 32  # this byte and all below it separate words
_NEWLINE = ord("\n")
_AT_ONCE = 2**15  # words, so that what is worked on stays in the processor's cache: several times faster
_PADDING = 16  # bytes after the last word, for those who look at eight at once
_MANY_RUNS = 4096  # of chosen lines, above which a mask is faster than slices

# What strtod takes, and what Microsoft's C library wrote for values that are not numbers: 1.#IND, -1.#INF, 1.#QNAN.
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|[+-]?(nan(\(\w*\))?|inf(inity)?)$", re.IGNORECASE)
MICROSOFT_NAN = re.compile(rb"[+-]?\d\.#(IND|INF|QNAN|SNAN)\d*(e[+-]?\d+)?", re.IGNORECASE)


def whole_text(content: bytes) -> bytes:
    """As with_newlines, of a file that is all text. Raises InputError for one with a zero byte, which no text has."""
    if (place := content.find(b"\0")) >= 0:
        raise InputError(f"byte {place} is 0, which text never has: it was not written whole; copy or export it again")
    return with_newlines(content)


def with_newlines(content: bytes) -> bytes:
    """The text with one newline after every line, whichever line ends it has, and without a byte order mark.

    Every line keeps its number.
    """
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content:
        content = content.replace(b"\r\n", b" \n").replace(b"\r", b"\n")
    return content if content.endswith(b"\n") else content + b"\n"


def without_comments(text: bytes) -> tuple[bytes, list[bytes]]:
    """A text with spaces in place of its comments, which go from a # to the end of a line; and these.

    The # of 1.#IND begins none: that is a value that is no number.
    """
    if b".#" in text:
        text = MICROSOFT_NAN.sub(lambda match: b"nan".ljust(len(match[0])), text)
    begin, comments, plain = text.find(b"#"), list[bytes](), bytearray()
    while begin >= 0:
        end = text.find(b"\n", begin)
        comments.append(text[begin:end])
        plain += text[len(plain) : begin] + b" " * (end - begin)
        begin = text.find(b"#", end)
    return (bytes(plain + text[len(plain) :]) if comments else text), comments


class Lines:
    """The lines of a text that are not blank."""

    def __init__(self, text: bytes, *, first: int = 1, numbered: bytes | None = None) -> None:
        """Of a text that ends with a newline, as with_newlines returns it.

        `first` is its first line's number in the file; `numbered` has all newlines where some were taken out of `text`.
        """
        self.text: UInt8[np.ndarray, " num_bytes"] = np.frombuffer(text, np.uint8)
        self._numbered, self._first = numbered or text, first
        ends = np.flatnonzero(self.text == _NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        indented = np.flatnonzero(self.text[starts] <= _BLANK)
        if len(indented):
            words = np.flatnonzero(self.text > _BLANK)
            place = np.searchsorted(words, starts[indented])
            starts[indented] = np.append(words, len(self.text))[place]
        kept = starts < ends
        self.starts: Int[np.ndarray, " num_lines"] = starts[kept]  # of the first word
        self.ends: Int[np.ndarray, " num_lines"] = ends[kept]  # of the newline

    def __len__(self) -> int:
        return len(self.starts)

    def bytes_at(
        self, offset: int, rows: Int[np.ndarray, " num_chosen"] | slice = slice(None)
    ) -> UInt8[np.ndarray, " num_chosen"]:
        """The byte of each line so far from its first word's start, in lower case; a blank where the line has ended."""
        at = self.starts[rows] + offset
        found = np.where(at < self.ends[rows], self.text[np.minimum(at, len(self.text) - 1)], _BLANK)
        return np.where((found >= ord("A")) & (found <= ord("Z")), found | 32, found)

    def first_words(
        self, longest: int, rows: Int[np.ndarray, " num_chosen"] | slice = slice(None)
    ) -> Shaped[np.ndarray, " num_chosen"]:
        """The first word of each line, in lower case, as bytes; of one that is longer than `longest` the beginning."""
        heads = np.stack([self.bytes_at(i, rows) for i in range(longest)], 1)
        heads[np.logical_or.accumulate(heads <= _BLANK, axis=1)] = 0
        return heads.view(f"S{longest}").reshape(-1)

    def number(self, row: int) -> int:
        """A line's number in the file."""
        return self._first + self._numbered.count(b"\n", 0, int(self.starts[row]))

    def line(self, row: int) -> str:
        """A line's text, shortened, for a message."""
        return quoted(self.text[self.starts[row] : self.ends[row]].tobytes())

    def rows(self, chosen: Bool[np.ndarray, " num_lines"], *, skip: int = 0) -> "Rows":
        """The words of the chosen lines, without the first `skip` bytes of each."""
        return Rows(self, np.flatnonzero(chosen), skip)


class Rows:
    """The words of some lines, row by row."""

    def __init__(self, lines: Lines, rows: Int[np.ndarray, " num_rows"], skip: int) -> None:
        self._lines, self._rows = lines, rows
        self.text, starts = _text_of(lines, rows, skip)
        blank = self.text <= _BLANK
        edges = np.flatnonzero(blank[1:] != blank[:-1]) + 1  # the first byte is blank, as the last is
        self._starts, self._ends = edges[::2], edges[1::2]
        self.first: Int[np.ndarray, " num_rows_and_1"] = self._first_words(starts)  # of each row, among all words

    def __len__(self) -> int:
        return len(self._rows)

    def number(self, row: int) -> int:
        """The number of a row's line in the file."""
        return self._lines.number(int(self._rows[row]))

    def line(self, row: int) -> str:
        """The text of a row's line, shortened, for a message."""
        return self._lines.line(int(self._rows[row]))

    @property
    def counts(self) -> Int[np.ndarray, " num_rows"]:
        """How many words each row has."""
        return np.diff(self.first)

    def _first_words(self, starts: Int[np.ndarray, " num_rows"]) -> Int[np.ndarray, " num_rows_and_1"]:
        num_rows, num_words = len(starts), len(self._starts)
        if num_rows and num_words % num_rows == 0 and num_words:
            width = num_words // num_rows
            begins, ends = self._starts[::width], self._starts[width - 1 :: width]
            if (begins >= starts).all() and (ends[:-1] < starts[1:]).all():
                return np.arange(0, num_words + 1, width)
        return np.append(np.searchsorted(self._starts, starts), num_words)

    def floats(self, num: int) -> Float[np.ndarray, "num_rows num"]:
        """The first words of every row, which has so many, as numbers.

        Raises InputError with the line's number for what is none.
        """
        words = self.first[:-1, None] + np.arange(num)
        return self._floats(None if words.size == len(self._starts) else words.reshape(-1)).reshape(-1, num)

    def all_floats(self) -> Float[np.ndarray, " num_words"]:
        """All words of all rows as numbers. Raises InputError with the line's number for what is none."""
        return self._floats(None)

    def _floats(self, chosen: Int[np.ndarray, " num_chosen"] | None) -> Float[np.ndarray, " num_chosen"]:
        offsets = np.concatenate([[0], np.cumsum(self._ends - self._starts)])
        compact = self.text[self.text > _BLANK]
        words = pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(compact))
        if chosen is not None:
            words = words.take(pa.array(chosen))
        try:
            return pc.cast(words, pa.float64()).to_numpy()
        except pa.ArrowInvalid:
            numbers = np.arange(len(offsets) - 1) if chosen is None else chosen
            return np.array([self._odd_float(word) for word in numbers.tolist()])

    def _odd_float(self, word: int) -> float:
        text = self._bytes_of(word)
        if MICROSOFT_NAN.fullmatch(text):
            return float("nan")
        if not _NUMBER.match(text):
            comma = "; write decimals with a point" if re.fullmatch(rb"[+-]?\d+,\d+", text) else ""
            raise InputError(f"{self._place_of(word)} is no number; expected one{comma or '; export it again'}")
        return float(text.split(b"(")[0])

    def _bytes_of(self, word: int) -> bytes:
        return self.text[self._starts[word] : self._ends[word]].tobytes()

    def _place_of(self, word: int) -> str:
        """A word's line and text, for a message."""
        line = self.number(int(np.searchsorted(self.first, word, side="right")) - 1)
        return f"line {line}: {quoted(self._bytes_of(word))}"

    def leading_integers(self) -> Int[np.ndarray, " num_words"]:
        """Of each word the integer before its first slash: the vertex of a corner in an OBJ's face.

        Raises InputError with the line's number for a word that does not begin with one.
        """
        groups = np.split(self._starts, range(_AT_ONCE, len(self._starts), _AT_ONCE))
        parts = zip(*(_integers(self.text, group) for group in groups), strict=True)
        values, wrong = (np.concatenate(part) for part in parts)
        if wrong.any():
            place = self._place_of(int(np.argmax(wrong)))
            raise InputError(f"{place} is no corner of a face; expected a vertex's number")
        return values


def _integers(
    text: UInt8[np.ndarray, " num_bytes"], starts: Int[np.ndarray, " num_words"]
) -> tuple[Int[np.ndarray, " num_words"], Bool[np.ndarray, " num_words"]]:
    """The integer at each start, up to a blank or slash, and whether there is none of at most 15 digits."""
    sign = text[starts]
    negative = sign == ord("-")
    starts = starts + (negative | (sign == ord("+")))
    values, digits = _leading_digits(text, starts)
    rows = np.flatnonzero(digits == 8)
    more, more_digits = _leading_digits(text, starts[rows] + 8)
    values[rows] = values[rows] * 10**more_digits + more
    digits[rows] += more_digits
    after = text[starts + digits]
    wrong = (digits == 0) | (digits > 15) | ((after > _BLANK) & (after != ord("/")))
    return np.where(negative, -values, values), wrong


def _leading_digits(
    text: UInt8[np.ndarray, " num_bytes"], starts: Int[np.ndarray, " num_words"]
) -> tuple[Int[np.ndarray, " num_words"], Int[np.ndarray, " num_words"]]:
    """The number that the digits from each start on make, eight at most, and how many they are.

    Eight bytes are looked at as one integer, whose lowest byte is the first (Lemire 2022, parsing eight digits).
    """
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))[starts] ^ np.uint64(0x3030303030303030)
    others = (((words & np.uint64(0x7F7F7F7F7F7F7F7F)) + np.uint64(0x7676767676767676)) | words) & np.uint64(
        0x8080808080808080
    )
    before = np.bitwise_count((others & -others) - np.uint64(1))  # bits below the first byte that is no digit
    digits = (before // 8).astype(np.int64)
    words <<= (64 - 8 * digits).astype(np.uint64)  # the last digit is the highest byte, zeros are before the first
    words = words * np.uint64(10) + (words >> np.uint64(8))
    pairs = np.uint64(0x000000FF000000FF)
    high = (words & pairs) * np.uint64(100 + (1000000 << 32))
    low = ((words >> np.uint64(16)) & pairs) * np.uint64(1 + (10000 << 32))
    return ((high + low) >> np.uint64(32)).astype(np.int64), digits


def _text_of(
    lines: Lines, rows: Int[np.ndarray, " num_rows"], skip: int
) -> tuple[UInt8[np.ndarray, " num_bytes"], Int[np.ndarray, " num_rows"]]:
    """The text of some lines between blanks, and where each begins in it; the first `skip` bytes are blanks."""
    if len(rows) == 0:
        return np.full(_PADDING, _BLANK, np.uint8), np.zeros(0, np.int64)
    begins, ends = lines.starts[rows], lines.ends[rows] + 1
    first_of_run = np.flatnonzero(np.concatenate([[True], np.diff(rows) > 1]))
    if len(first_of_run) < _MANY_RUNS:
        last_of_run = np.append(first_of_run[1:], len(rows)) - 1
        runs = zip(begins[first_of_run].tolist(), ends[last_of_run].tolist(), strict=True)
        pieces = [lines.text[begin:end] for begin, end in runs]
        shift = np.cumsum([0, *(len(piece) for piece in pieces[:-1])]) - begins[first_of_run]
        starts = begins + np.repeat(shift, np.diff(np.append(first_of_run, len(rows))))
    else:
        chosen = np.zeros(2 * len(rows) + 1, bool)
        chosen[1::2] = True
        gaps = np.empty(2 * len(rows) + 1, np.int64)  # bytes between the lines, and in them
        gaps[1::2] = ends - begins
        gaps[2:-1:2] = begins[1:] - ends[:-1]
        gaps[0], gaps[-1] = begins[0], len(lines.text) - ends[-1]
        pieces = [lines.text[np.repeat(chosen, gaps)]]
        starts = np.concatenate([[0], np.cumsum(ends - begins)[:-1]])
    text = np.concatenate([np.array([_BLANK], np.uint8), *pieces, np.full(_PADDING, _BLANK, np.uint8)])
    starts = starts + 1
    for byte in range(skip):
        text[starts + byte] = _BLANK
    return text, starts


def quoted(text: bytes) -> str:
    """A piece of a file, shortened, for a message."""
    shown = " ".join(text[:80].decode(errors="backslashreplace").split())
    return repr(shown[:40] + "..." if len(shown) > 40 else shown)
