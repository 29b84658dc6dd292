"""OFF (Geomview), as text: numbers of vertices, faces and edges, then the vertices, then the faces.

A vertex is on a line, with colours and the like after its coordinates, and a face on another, with colours after it. A
file that breaks its lines elsewhere is read as a stream of numbers without colours, if these are as many as declared.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..errors import InputError
from .polygons import Polygons, triangulate
from .raw import RawMesh, check_indices, cut, damaged, runs, whole_numbers
from .text import Lines, Rows, whole_text, without_comments

HEADER = re.compile(rb"\s*((?:ST)?C?N?4?N?)OFF(?=[\s\d]|$)(?:\s+(BINARY)\b)?", re.IGNORECASE)


class _Counts(NamedTuple):
    vertices: int
    faces: int


def read(content: bytes) -> RawMesh:
    """Raises InputError where vertices or faces are missing, too many or not as the format says."""
    if (header := HEADER.match(content)) and header[2]:
        raise InputError("it is a binary OFF; only OFF as text is read; export it as text, or as PLY")
    original = whole_text(content)
    text, _ = without_comments(original)
    header = HEADER.match(text)
    kind = header[1].upper() if header else b""
    if header and header[0].endswith(b"nOFF"):
        raise InputError(
            "it is an nOFF, with any number of dimensions; expected OFF, which has three; export it as OFF"
        )
    if header:
        text = b" " * header.end() + text[header.end() :]
    lines = Lines(text, numbered=original)
    rows = lines.rows(np.ones(len(lines), bool))
    values = rows.all_floats()
    counts = _declared(values)
    size = 4 if b"4" in kind else 3  # the fourth divides the others
    starts, num_after = _starts(rows, values, counts, size)
    vertices = values[starts[: counts.vertices, None] + np.arange(size)]
    if size == 4:
        with np.errstate(divide="ignore", invalid="ignore"):
            vertices = vertices[:, :3] / vertices[:, 3:]
    begins = starts[counts.vertices :]
    sizes = values[begins].astype(np.int64)
    corners = whole_numbers(values[runs(begins + 1, sizes)], "faces name")
    check_indices(corners, counts.vertices, "a face names")
    faces, notes = triangulate(vertices, Polygons(corners, sizes))
    if not len(faces):
        raise InputError("the file holds no faces; expected polygons; export it as a surface")
    return RawMesh(vertices, faces, {**notes, "lines after the last face ignored": num_after})


def _starts(
    rows: Rows, values: Float[np.ndarray, " num_words"], counts: _Counts, size: int
) -> tuple[Int[np.ndarray, " num_vertices_and_faces"], int]:
    """The first word of each vertex and of each face, and how many lines come after the last."""
    by_line = _starts_by_line(rows, values, counts, size)
    num_after = len(rows) - 1 - sum(counts)
    ways = [by_line] if not isinstance(by_line, InputError) and not num_after else []
    # the third count is that of edges; it may lack where two numbers are alone on the first line
    for num_counts in {3, min(3, int(rows.first[1]))} - {1}:
        in_stream = _starts_in_stream(values, num_counts, counts, size)
        if in_stream is not None and not any(np.array_equal(in_stream, way) for way in ways):
            ways.append(in_stream)
    if len(ways) > 1 or (not isinstance(by_line, InputError) and rows.first[1] > 3):
        raise InputError(
            "its numbers can be read in two ways; write three counts, then each vertex and each face on its own line"
        )
    if ways:
        return ways[0], 0
    if isinstance(by_line, InputError):
        raise by_line
    return by_line, num_after


def _declared(values: Float[np.ndarray, " num_words"]) -> _Counts:
    counts = values[:2]
    if len(counts) < 2 or not ((counts >= 0) & (counts == np.floor(counts)) & (counts < 2**40)).all():
        raise InputError("its first numbers are not those of vertices and faces; the file is no OFF; export it again")
    return _Counts(int(counts[0]), int(counts[1]))


def _starts_by_line(
    rows: Rows, values: Float[np.ndarray, " num_words"], counts: _Counts, size: int
) -> Int[np.ndarray, " num_vertices_and_faces"] | InputError:
    """The first word of each vertex and of each face, one on a line; or why they are not so."""
    num_lines = sum(counts)
    if len(rows) - 1 < num_lines:
        return cut(
            f"it declares {counts.vertices} vertices and {counts.faces} faces but has {len(rows) - 1} lines of them"
        )
    starts, lengths = rows.first[1 : num_lines + 1], rows.counts[1 : num_lines + 1]
    needed = np.full(num_lines, float(size))
    sizes = values[starts[counts.vertices :]]
    needed[counts.vertices :] = 1 + np.where((sizes >= 0) & (sizes == np.floor(sizes)), sizes, np.inf)
    if (wrong := lengths < needed).any():
        row = int(np.argmax(wrong))
        what = f"vertex {row}" if row < counts.vertices else f"face {row - counts.vertices}"
        return damaged(
            f"line {rows.number(1 + row)}: {what} is {rows.line(1 + row)}; expected {needed[row]:g} numbers or more"
        )
    return starts


def _starts_in_stream(
    values: Float[np.ndarray, " num_words"], word: int, counts: _Counts, size: int
) -> Int[np.ndarray, " num_vertices_and_faces"] | None:
    """The first word of each vertex and of each face, from `word` on; None unless they take up all words."""
    begin_of_faces = word + size * counts.vertices
    if begin_of_faces + counts.faces > len(values):
        return None
    starts, place = [], begin_of_faces
    for _ in range(counts.faces):
        if place >= len(values) or not 0 <= values[place] < len(values):
            return None
        starts.append(place)
        place += 1 + int(values[place])
    if place != len(values):
        return None
    return np.concatenate([word + size * np.arange(counts.vertices), np.array(starts, np.int64)])
