"""STL, binary and as text.

Binary (3D Systems, 1989), little-endian: 80 bytes of any content, the number of triangles as uint32, then 50 bytes for
each: the normal and three corners as float32, and 2 bytes of any content. Text: "solid name", facets, "endsolid name",
and more such solids; there is no count, but what begins must end.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .mesh import is_closed
from .raw import RawMesh, cut, damaged
from .text import Lines, with_newlines

HEADER, _RECORD = 84, 50
_FACET = (b"facet", b"outer", b"vertex", b"vertex", b"vertex", b"endloop", b"endfacet")  # the lines of one, in order
_LONGEST = len(b"endfacet") + 1  # bytes of a line's first word that are looked at
_SPLIT_WORDS = re.compile(rb"(?im)^([ \t]*end)[ \t]+(loop|facet|solid\b)")
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
        raise damaged(f"the file says that it has {declared} triangles but has room for {room:g}")
    if declared == 0:
        raise InputError(_NO_FACES)
    record = np.dtype({"names": ["corners"], "formats": [("<f4", (3, 3))], "offsets": [12], "itemsize": _RECORD})
    corners = np.frombuffer(content, record, count=declared, offset=HEADER)["corners"]
    vertices = corners.astype(np.float32, order="C").reshape(-1, 3)
    notes = {"bytes after the last triangle ignored": rest}
    return RawMesh(vertices, np.arange(3 * declared).reshape(-1, 3), notes)


class _Solids(NamedTuple):
    corners: Float[np.ndarray, "num_corners 3"]
    num_open: int  # solids without endsolid
    num_ignored: int  # lines


def read_text(content: bytes) -> RawMesh:
    """Raises InputError with the line's number for what is no STL, and for a file that ends early.

    A last solid without "endsolid" counts as whole if the surface is closed: nothing is missing then.
    """
    vertices, num_open, num_ignored = _solids(with_newlines(content.rstrip(b"\0")))
    if len(vertices) == 0:
        raise InputError(_NO_FACES)
    faces = np.arange(len(vertices)).reshape(-1, 3)
    if num_open > 0 and not is_closed(vertices, faces):
        raise InputError(
            f"the file ends after {len(faces)} facets without endsolid, and its surface is not closed: it may be cut; "
            "export it again, or add the line endsolid if it is whole"
        )
    return RawMesh(
        vertices, faces, {"lines that are no STL ignored": num_ignored, "endsolid missing": max(num_open, 0)}
    )


def _solids(text: bytes) -> _Solids:
    """A text with a statement on each line, as almost all are, or with its lines broken elsewhere."""
    try:
        found = _read_lines(text)
    except InputError as error:
        split = _SPLIT_WORDS.sub(rb"\1\2", text.replace(b"outerloop", b"outer loop"))
        try:
            return _read_lines(_one_statement_a_line(split))
        except InputError:
            raise error from None  # which has the file's own line numbers
    if not len(found.corners) and b"facet" in text.lower():  # on the line of the name
        return _read_lines(_broken(text))
    return found


def _one_statement_a_line(text: bytes) -> bytes:
    """A text that breaks its lines elsewhere, broken before every keyword outside the lines of names."""
    pieces = re.split(rb"(?im)(^[ \t]*(?:end)?solid\b[^\n]*$)", text)
    pieces[::2] = map(_broken, pieces[::2])
    return b"".join(pieces)


def _broken(facets: bytes) -> bytes:
    words = b" ".join(facets.split())
    return b"\n" + re.sub(rb"(?i)\b(facet|outer|vertex|endloop|endfacet|(end)?solid)\b", rb"\n\1", words) + b"\n"


def _read_lines(text: bytes) -> _Solids:
    lines = Lines(text)
    words = lines.first_words(_LONGEST)
    inside = np.logical_or.reduce([words == word for word in set(_FACET)])  # a facet
    place = (np.cumsum(inside) - inside) % len(_FACET)  # in _FACET, of the line or the next inside
    wrong = np.where(inside, words != np.array(_FACET)[place], place != 0)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise damaged(
            f"line {lines.number(row)}: got {lines.line(row)}, expected a line that begins with "
            f"{_FACET[place[row]].decode()!r}"
        )
    rows = lines.rows(words == b"vertex", skip=len(b"vertex"))
    if (rows.counts != 3).any():
        row = int(np.argmax(rows.counts != 3))
        raise damaged(f"line {rows.number(row)}: a vertex has {rows.counts[row]} numbers; expected 3")
    corners = rows.floats(3)
    if last := int(np.count_nonzero(inside)) % len(_FACET):
        raise cut(f"the file ends where a line that begins with {_FACET[last].decode()!r} should follow")
    solid, endsolid = (int((words == word).sum()) for word in (b"solid", b"endsolid"))
    return _Solids(corners, solid - endsolid, int((~inside).sum()) - solid - endsolid)
