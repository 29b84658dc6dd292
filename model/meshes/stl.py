"""STL, binary and as text.

Binary (3D Systems, 1989), little-endian: 80 bytes of any content, the number of triangles as uint32, then 50 bytes for
each: the normal and three corners as float32, and 2 bytes of any content. Text: "solid name", facets, "endsolid name",
and more such solids; there is no count, but what begins must end.
"""

import re

import numpy as np
from jaxtyping import Bool, Float, Int

from ..errors import InputError
from .mesh import is_closed
from .raw import RawMesh
from .text import Lines, with_newlines

HEADER, _RECORD = 84, 50
_FACET = (b"facet", b"outer", b"vertex", b"vertex", b"vertex", b"endloop", b"endfacet")  # the lines of one, in order
_KEYWORDS = (b"facet", b"outer", b"vertex", b"endloop", b"endfacet", b"solid", b"endsolid")
_SPLIT_WORDS = re.compile(rb"(?im)^([ \t]*end)[ \t]+(loop|facet|solid\b)")
_CHUNK = 2**24  # bytes of text at a time: bounds the memory beside the result
_NO_FACES = "the file holds no faces; expected triangles; export it as a surface"


def declared_length(content: bytes) -> int:
    """How long a binary STL that begins like this says it is."""
    return HEADER + _RECORD * int.from_bytes(content[80:84], "little")


def read_binary(content: bytes) -> RawMesh:
    """Raises InputError where the number of triangles does not fit the file's length.

    A rest too short for one more triangle, or of zeros, is ignored and noted.
    """
    declared = (declared_length(content) - HEADER) // _RECORD
    rest = len(content) - declared_length(content)
    if len(content) < HEADER or rest < 0 or (rest >= _RECORD and content[-rest:].strip(b"\0")):
        room = max(0.0, (len(content) - HEADER) / _RECORD)
        raise InputError(
            f"the file says that it has {declared} triangles but has room for {room:g}; it is damaged; export it again"
        )
    if declared == 0:
        raise InputError(_NO_FACES)
    record = np.dtype({"names": ["corners"], "formats": [("<f4", (3, 3))], "offsets": [12], "itemsize": _RECORD})
    corners = np.frombuffer(content, record, count=declared, offset=HEADER)["corners"]
    vertices = corners.astype(np.float32, order="C").reshape(-1, 3)
    notes = (f"bytes after the last triangle ignored: {rest}",) if rest else ()
    return RawMesh(vertices, np.arange(3 * declared).reshape(-1, 3), notes)


def read_text(content: bytes) -> RawMesh:
    """Raises InputError with the line's number for what is no STL, and for a file that ends early.

    A last solid without "endsolid" counts as whole if the surface is closed: nothing is missing then.
    """
    parser = _parsed(with_newlines(content.rstrip(b"\0")))
    vertices = np.concatenate(parser.corners)
    if len(vertices) == 0:
        raise InputError(_NO_FACES)
    faces = np.arange(len(vertices)).reshape(-1, 3)
    notes = (f"lines that are no STL ignored: {parser.num_ignored}",) if parser.num_ignored else ()
    if parser.num_open <= 0:
        return RawMesh(vertices, faces, notes)
    if not is_closed(vertices, faces):
        raise InputError(
            f"the file ends after {len(faces)} facets without endsolid, and its surface is not closed: it may be cut; "
            "export it again, or add the line endsolid if it is whole"
        )
    return RawMesh(vertices, faces, (*notes, f"endsolid missing: {parser.num_open}"))


def _parsed(text: bytes) -> "_Parser":
    """A text with a statement on each line, as almost all are, or with its lines broken elsewhere."""
    try:
        parser = _read_lines(text)
    except InputError as error:
        try:
            return _read_lines(
                _one_statement_a_line(_SPLIT_WORDS.sub(rb"\1\2", text.replace(b"outerloop", b"outer loop")))
            )
        except InputError:
            raise error from None  # which has the file's own line numbers
    if not any(map(len, parser.corners)) and b"facet" in text.lower():  # on the line of the name
        return _read_lines(_broken(text))
    return parser


def _read_lines(text: bytes) -> "_Parser":
    parser, begin = _Parser(), 0
    while begin < len(text):
        end = text.find(b"\n", begin + _CHUNK) + 1 or len(text)
        parser.read(text[begin:end])
        begin = end
    parser.finish()
    return parser


def _one_statement_a_line(text: bytes) -> bytes:
    """A text that breaks its lines elsewhere, broken before every keyword outside the lines of names."""
    named = re.compile(rb"(?im)^[ \t]*(end)?solid\b[^\n]*$")
    pieces, begin = [], 0
    for match in named.finditer(text):
        pieces += [_broken(text[begin : match.start()]), match[0]]
        begin = match.end()
    return b"".join([*pieces, _broken(text[begin:])])


def _broken(facets: bytes) -> bytes:
    words = b" ".join(facets.split())
    return b"\n" + re.sub(rb"(?i)\b(facet|outer|vertex|endloop|endfacet|(end)?solid)\b", rb"\n\1", words) + b"\n"


class _Parser:
    """The corners of facets, from piece after piece of a text."""

    def __init__(self) -> None:
        self.corners: list[Float[np.ndarray, "num_corners 3"]] = [np.zeros((0, 3))]
        self.num_open = 0  # solids without endsolid
        self.num_ignored = 0  # lines
        self._next_line = 1
        self._place = 0  # in _FACET, of the next line

    def read(self, text: bytes) -> None:
        """The next piece, whole lines of the text."""
        lines = Lines(text, first=self._next_line)
        self._next_line = lines.next_number
        keywords = _keywords(lines)
        inside = keywords < len(_KEYWORDS) - 2  # a facet
        place = (self._place + np.cumsum(inside) - inside) % len(_FACET)  # in _FACET, of the line or the next inside
        wrong = np.where(inside, keywords != np.array([_KEYWORDS.index(k) for k in _FACET])[place], place != 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"line {lines.number(row)}: got {lines.line(row)}, expected a line that begins with "
                f"{_FACET[place[row]].decode()!r}; the file is damaged; export it again"
            )
        self._place = (self._place + int(np.count_nonzero(inside))) % len(_FACET)
        solid, endsolid = (int((keywords == _KEYWORDS.index(k)).sum()) for k in (b"solid", b"endsolid"))
        self.num_open += solid - endsolid
        self.num_ignored += int((~inside).sum()) - solid - endsolid
        self.corners.append(self._vertices(lines, keywords == _KEYWORDS.index(b"vertex")))

    def _vertices(self, lines: Lines, chosen: Bool[np.ndarray, " num_lines"]) -> Float[np.ndarray, "num_chosen 3"]:
        rows = lines.rows(chosen, skip=len(b"vertex"))
        if (rows.counts != 3).any():
            row = int(np.argmax(rows.counts != 3))
            raise InputError(
                f"line {rows.number(row)}: a vertex has {rows.counts[row]} numbers; expected 3; the file is damaged; "
                "export it again"
            )
        return rows.floats(3)

    def finish(self) -> None:
        """Raise InputError if the text ends within a facet."""
        if self._place:
            raise InputError(
                f"the file ends where a line that begins with {_FACET[self._place].decode()!r} should follow; it is "
                "cut; export it again"
            )


def _keywords(lines: Lines) -> Int[np.ndarray, " num_lines"]:
    """For each line the number of its first word in _KEYWORDS, in any case; len(_KEYWORDS) for other words."""
    found = np.full(len(lines), len(_KEYWORDS))
    heads = np.stack([lines.bytes_at(i) for i in range(max(map(len, _KEYWORDS)) + 1)], 1)
    for number, word in enumerate(_KEYWORDS):
        same = (heads[:, : len(word)] == np.frombuffer(word, np.uint8)).all(1) & (heads[:, len(word)] <= ord(" "))
        found[same] = number
    return found
