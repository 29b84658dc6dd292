"""PLY (Turk, 1994), as text and binary of either byte order: elements of rows, each with the header's properties.

Vertices and faces are what a mesh has; triangle strips are read too. Every row that the header declares must be there,
and nothing else.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from .mesh import Faces, Vertices
from .ply_binary import BinaryRows
from .ply_header import Column, read_header
from .ply_text import TextRows
from .polygons import Polygons, triangulate
from .raw import RawMesh, check_indices, whole_numbers

_LISTS = ("vertex_indices", "vertex_index")


def read(content: bytes) -> RawMesh:
    """Raises InputError where rows are missing, too many or not as the header declares."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    header = read_header(content)
    rows = TextRows(content, header) if header.is_text else BinaryRows(content, header)
    vertices, polygons, strips, notes = list[Vertices](), list[Polygons](), list[Polygons](), Counter[str]()
    for element in header.elements:
        if element.name == "vertex":
            vertices.append(_positions(rows.read(element, ("x", "y", "z"))))
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
            rows.read(element, ())
            notes[f"rows of element {element.name} ignored"] += element.num_rows
    notes["bytes after the last row ignored"] = rows.finish()
    if len(vertices) != 1:
        raise InputError(f"it has {len(vertices)} elements called vertex; expected one; export it again")
    for found in polygons:
        check_indices(found.corners, len(vertices[0]), "a face names")
    triangles = []
    for found in polygons:
        faces, more_notes = triangulate(vertices[0], found)
        triangles.append(faces)
        notes.update(more_notes)
    triangles += [_of_strips(strip, len(vertices[0])) for strip in strips]
    if not sum(map(len, triangles)):
        names = ", ".join(f"{element.name} ({element.num_rows})" for element in header.elements)
        raise InputError(f"the file holds no faces, only {names}; expected triangles; export it as a surface")
    return RawMesh(vertices[0], np.concatenate(triangles), notes)


def _positions(columns: Sequence[Column]) -> Vertices:
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
