"""A writer of PLY for tests, in every format, with types, properties and elements of choice."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tests.model.meshes.truths import BOX, QUADS, TRIANGLES

FORMATS = ("ascii", "binary_little_endian", "binary_big_endian")
MIXED = [*QUADS[:3], *TRIANGLES[6:]]
Face = tuple[int, ...]
Value = tuple[float, str]  # a number, and how numpy calls its type


@dataclass(frozen=True)
class Dialect:
    """Types are the name in the header and numpy's."""

    point: tuple[str, str] = ("float", "f4")
    count: tuple[str, str] = ("uchar", "u1")
    index: tuple[str, str] = ("int", "i4")
    name: str = "vertex_indices"
    extra: bool = False  # other properties before and after, a list among them
    newline: bytes = b"\n"
    comment: str = "comment made by a test"
    order: str = "xyz"

    def header(self, kind: str, num_vertices: int, num_faces: int) -> list[str]:
        lines = ["ply", f"format {kind} 1.0", self.comment, f"element vertex {num_vertices}"]
        lines += [f"property {self.point[0]} {axis}" for axis in self.order]
        lines += ["property uchar red", "property double quality"] if self.extra else []
        lines += [f"element face {num_faces}"] + (["property short group"] if self.extra else [])
        lines += [f"property list {self.count[0]} {self.index[0]} {self.name}"]
        lines += ["property list uchar float texcoord", "property uchar flags"] if self.extra else []
        return [*lines, "end_header"]

    def vertex(self, vertex: np.ndarray) -> list[Value]:
        row = [(float(vertex["xyz".index(axis)]), self.point[1]) for axis in self.order]
        return row + ([(200, "u1"), (0.25, "f8")] if self.extra else [])

    def face(self, number: int, face: Face) -> list[Value]:
        row: list[Value] = [(-7, "i2")] if self.extra else []
        row += [(len(face), self.count[1]), *((corner, self.index[1]) for corner in face)]
        if self.extra:
            row += [(number % 4, "u1"), *((value / 2, "f4") for value in range(number % 4)), (3, "u1")]
        return row


def rows(kind: str, table: Iterable[list[Value]], newline: bytes = b"\n") -> bytes:
    """Rows of values as text or binary."""
    if kind == "ascii":
        return b"".join(b" ".join(str(np.array(v).astype(t)).encode() for v, t in row) + newline for row in table)
    order = "<" if kind == "binary_little_endian" else ">"
    return b"".join(np.array([v]).astype(t).astype(order + t).tobytes() for row in table for v, t in row)


def ply(
    kind: str = "ascii", *, vertices: np.ndarray = BOX, faces: list[Face] = MIXED, dialect: Dialect = Dialect()
) -> bytes:
    header = dialect.header(kind, len(vertices), len(faces))
    table = [dialect.vertex(vertex) for vertex in vertices]
    table += [dialect.face(number, face) for number, face in enumerate(faces)]
    text = dialect.newline.join(line.encode("latin-1") for line in header) + dialect.newline
    return text + rows(kind, table, dialect.newline)
