"""What a reader returns."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from ..errors import InputError
from .mesh import Faces, Vertices


class RawMesh(NamedTuple):
    """The triangles that a file holds, all of them and nothing repaired."""

    vertices: Vertices  # float32 or float64, in the file's frame
    faces: Faces  # int64, each a vertex that is there
    notes: tuple[str, ...] = ()  # what the file holds besides, each as "what: how much"


def whole_numbers(values: Shaped[np.ndarray, " num_values"], what: str) -> Int[np.ndarray, " num_values"]:
    """The values as int64. Raises InputError, in which `what` names vertices by them, for any that is no integer."""
    if values.dtype.kind == "f" and not ((values == np.floor(values)) & (np.abs(values) < 2**53)).all():
        raise InputError(f"{what} vertices by fractions or huge numbers; expected integers; export it again")
    return values.astype(np.int64)


def check_indices(indices: Int[np.ndarray, " num_indices"], num_vertices: int, what: str) -> None:
    """Raise InputError if an index names no vertex."""
    if len(indices) and (indices.min() < 0 or indices.max() >= num_vertices):
        wrong = int(indices[(indices < 0) | (indices >= num_vertices)][0])
        raise InputError(
            f"{what} vertex {wrong} but the file has {num_vertices}, counted from 0; it is damaged; export it again"
        )
