"""The one mesh type, and what closed means."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

Vertices = Float[np.ndarray, "num_vertices 3"]
Faces = Int[np.ndarray, "num_faces 3"]  # indices of vertices, counterclockwise from outside


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh.

    One that load_mesh returns is in its file's frame and clean: a face has three different vertices, a vertex a face.
    """

    vertices: Vertices  # float64 from a file
    faces: Faces  # int64 from a file, counterclockwise from outside
    notes: tuple[str, ...] = ()  # what was repaired, ignored or lost while reading, each as "what: how much"
    num_dropped: int = 0  # triangles of the file that are not among the faces

    @cached_property
    def is_closed(self) -> bool:
        """See the function of that name."""
        return is_closed(self.vertices, self.faces)


def is_closed(vertices: Vertices, faces: Faces) -> bool:
    """Whether the surface has no border: each edge is run through equally often in both directions.

    Vertices at the same coordinates count as one. Equivalently, the faces are a cycle, so that their winding number is
    a whole number everywhere off the surface: what signs and volumes rest on. Bodies that touch along an edge are
    closed; a surface whose neighbouring faces are wound against each other is not, nor is one without faces.
    """
    if len(faces) == 0:
        return False
    vertices = np.ascontiguousarray(vertices)
    number, _ = number_rows(vertices)
    place = number[np.asarray(faces)]
    starts, ends = place.reshape(-1), np.roll(place, -1, axis=1).reshape(-1)
    edge = np.minimum(starts, ends) * len(vertices) + np.maximum(starts, ends)
    upward, downward = np.sort(edge[starts < ends]), np.sort(edge[starts > ends])
    return np.array_equal(upward, downward)


def number_rows(
    rows: Float[np.ndarray, "num_rows 3"],
) -> tuple[Int[np.ndarray, " num_rows"], Int[np.ndarray, " num_distinct"]]:
    """For each row its number, where equal rows have one, and for each number its first row.

    Numbers are in the order in which rows first appear. A table of hashes of the rows' bytes is several times faster
    than sorting them.
    """
    rows = np.ascontiguousarray(rows) + rows.dtype.type(0)  # -0 becomes 0
    words = pa.FixedSizeBinaryArray.from_buffers(pa.binary(3 * rows.itemsize), len(rows), [None, pa.py_buffer(rows)])
    number = words.dictionary_encode().indices.to_numpy()
    highest = np.maximum.accumulate(number)
    first = np.flatnonzero(np.append(highest[:1] == 0, highest[1:] != highest[:-1]))
    return number.astype(np.int64), first
