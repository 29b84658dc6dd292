"""The one mesh type, and what closed means."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from .numbering import number_rows

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
