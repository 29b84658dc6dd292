"""OBJ (Wavefront, 1995): lines of vertices and of polygons that name them."""

import re
from collections import Counter

import numpy as np
from jaxtyping import Int

from ..errors import InputError
from .mesh import Vertices
from .polygons import Polygons, triangulate
from .raw import Notes, RawMesh, cut, damaged
from .text import Lines, Rows, whole_text, without_comments

_LONGEST = 16  # bytes of a statement's name that are looked at
_MAX_NUMBERS = 8  # of a vertex: x y z, then a weight, a colour or both
# What a file may say besides its faces without having another shape.
_NAMES = {"g", "o", "s", "mg", "usemtl", "mtllib", "usemap", "maplib"}
_LOOKS = {"vt", "vn", "vp", "bevel", "c_interp", "d_interp", "lod", "shadow_obj", "trace_obj"}
_LINES_AND_POINTS = {"l": "lines", "p": "points", "curv": "curves", "curv2": "curves"}
# Statements of free-form surfaces, and of other files: leaving them out would leave a part of the shape out.
_SHAPES = {
    "surf": "a free-form surface",
    "bzp": "a Bezier patch",
    "bsp": "a B-spline patch",
    "cdc": "a Cardinal curve",
    "cdp": "a Cardinal patch",
    "call": "a call of another file",
    "csh": "a command to run",
}


def read(content: bytes) -> RawMesh:
    """Raises InputError with the line's number for what is no OBJ, and for an index that names no vertex.

    Relative indices count from the vertices read so far, absolute ones from the file's first, both from 1.
    """
    text = whole_text(content)
    plain, comments = without_comments(text)
    lines = Lines(_joined(plain), numbered=text)
    first, second = lines.bytes_at(0), lines.bytes_at(1)
    old_faces = (first == ord("f")) & (second == ord("o")) & (lines.bytes_at(2) <= ord(" "))
    if old_faces.any():  # fo is an old name of f
        return read(re.sub(rb"(?m)^([ \t]*f)o(?=[ \t])", rb"\1 ", text))
    is_vertex, is_face = ((first == ord(letter)) & (second <= ord(" ")) for letter in "vf")
    attribute = (first == ord("v")) & np.isin(second, [ord("t"), ord("n")])
    notes = _check_others(lines, np.flatnonzero(~(is_vertex | is_face | attribute)))
    vertices, vertex_notes = _vertices(lines.rows(is_vertex, skip=1))
    rows = lines.rows(is_face, skip=1)
    if not (rows.counts >= 3).any():
        raise InputError(
            "the file holds no faces; expected lines that begin with f and name three vertices; export it as a surface"
        )
    corners, counts = rows.leading_integers(), rows.counts
    _check_end(content, comments, len(vertices), counts)
    corners = _resolved(rows, corners, counts, np.cumsum(is_vertex)[is_face], len(vertices))
    faces, polygon_notes = triangulate(vertices, Polygons(corners, counts))
    return RawMesh(vertices, faces, {**notes, **vertex_notes, **polygon_notes})


def _joined(text: bytes) -> bytes:
    """Lines of vertices and faces that end with a backslash joined to the next; every byte keeps its place.

    Other lines hold names, and a name may end so: a folder of textures on Windows does.
    """
    if b"\\" not in text:
        return text
    joined = bytearray(text)
    for match in re.finditer(rb"\\[ \t]*\n", text):
        begin = joined.rfind(b"\n", 0, match.start()) + 1
        if re.match(rb"[ \t]*(v|vt|vn|f|fo|l|p)[ \t]", joined[begin : match.start()], re.IGNORECASE):
            joined[match.start() : match.end()] = b" " * len(match[0])
    return bytes(joined[:-1] + b"\n")  # where the last line is continued, by nothing


def _check_others(lines: Lines, rows: Int[np.ndarray, " num_others"]) -> Notes:
    """Notes of the statements that are neither vertices nor faces. Raises InputError where they are surfaces too."""
    if len(rows) == 0:
        return {}
    words, first, counts = np.unique(lines.first_words(_LONGEST, rows), return_index=True, return_counts=True)
    ignored: Counter[str] = Counter()
    for word, row, count in zip(words.tolist(), rows[first].tolist(), counts.tolist(), strict=True):
        name = word.decode("latin-1")
        if name in _SHAPES:
            raise InputError(
                f"line {lines.number(row)}: {name!r} is {_SHAPES[name]}; only vertices and polygons are read; export "
                "the shape as polygons"
            )
        if not re.match(r"[a-z]\w*$", name):
            raise InputError(f"line {lines.number(row)}: {lines.line(row)} is no statement of an OBJ; export it again")
        if name not in _NAMES | _LOOKS:
            ignored[f"{_LINES_AND_POINTS.get(name, f'unknown statements {name}')} ignored"] += count
    return dict(sorted(ignored.items()))


def _vertices(rows: Rows) -> tuple[Vertices, Notes]:
    counts = rows.counts
    wrong = (counts < 3) | (counts > _MAX_NUMBERS)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"line {rows.number(row)}: a vertex has {counts[row]} numbers; expected x y z; export it again as a 3D mesh"
        )
    if len(rows) and (counts == 4).all():
        numbers = rows.floats(4)
        return np.ascontiguousarray(numbers[:, :3]), {"weights of vertices ignored": int((numbers[:, 3] != 1).sum())}
    return rows.floats(3), {}


def _check_end(content: bytes, comments: list[bytes], num_vertices: int, counts: Int[np.ndarray, " num_faces"]) -> None:
    """Raise InputError where the file ends early, as far as an OBJ tells.

    It declares no numbers; but exporters write them in comments ("# Vertices: 8", "# 12 faces"), and a last line
    without newline that names one or two vertices of a face is not whole.
    """
    if counts[-1] < 3 and re.search(rb"[\r\n][ \t]*f[ \t][^\r\n]*\Z", content[-200:]):
        raise cut(f"the file ends within a face, after {counts[-1]} corners")
    num_triangles = int(np.maximum(counts - 2, 0).sum())
    found = {"vertices": num_vertices, "faces": max(len(counts), num_triangles), "triangles": num_triangles}
    for style in (rb"#\s*(\d+) (%s)\s*$", rb"#\s*(?:number of )?(%s)\s*:\s*(\d+)\s*$"):
        declared = Counter[str]()
        for comment in comments:
            if match := re.match(style % b"vertices|faces|triangles", comment, re.IGNORECASE):
                number, name = sorted(match.groups())  # digits are before letters
                declared[name.decode().lower()] += int(number)
        for name, number in declared.items():
            if number > found[name]:
                raise InputError(
                    f"its comments say that it has {number} {name} but it has {found[name]}; it is cut; export it "
                    "again, or remove the comments if it is whole"
                )


def _resolved(
    rows: Rows,
    corners: Int[np.ndarray, " num_corners"],
    counts: Int[np.ndarray, " num_faces"],
    num_before: Int[np.ndarray, " num_faces"],
    num_vertices: int,
) -> Int[np.ndarray, " num_corners"]:
    """Corners of faces as vertices counted from 0; `num_before` vertices were read before each face."""
    if corners.min(initial=1) > 0:
        vertices = corners - 1
    else:
        vertices = np.where(corners < 0, np.repeat(num_before, counts) + corners, corners - 1)
    wrong = (vertices < 0) | (vertices >= num_vertices)
    if wrong.any():
        corner = int(np.argmax(wrong))
        row = int(np.searchsorted(np.cumsum(counts), corner, side="right"))
        named, read = corners[corner], num_before[row]
        place = f"line {rows.number(row)}: a face names vertex {named}"
        if named == 0:
            raise InputError(f"{place}, but OBJ counts vertices from 1; count from 1")
        found = f"only {read} were read before it" if named < 0 else f"the file has {num_vertices}"
        raise damaged(f"{place}, but {found}")
    return vertices
