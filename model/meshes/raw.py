"""What a reader returns, and what readers share."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from ..errors import InputError
from .mesh import Faces, Vertices

Notes = Mapping[str, int]  # what was repaired, ignored or lost while reading, and how much; 0 says nothing


class RawMesh(NamedTuple):
    """The triangles that a file holds, all of them and nothing repaired."""

    vertices: Vertices  # float32 or float64, in the file's frame
    faces: Faces  # int64, each a vertex that is there
    notes: Notes  # what the file holds besides


def told(notes: Notes) -> tuple[str, ...]:
    """Each as "what: how much"."""
    return tuple(f"{what}: {number}" for what, number in notes.items() if number)


def damaged(what: str) -> InputError:
    """Of a file that is not what it says of itself."""
    return InputError(f"{what}; the file is damaged; export it again")


def cut(what: str) -> InputError:
    """Of a file that ends before it should."""
    return InputError(f"{what}; it is cut; export it again")


def whole_numbers(values: Shaped[np.ndarray, " num_values"], what: str) -> Int[np.ndarray, " num_values"]:
    """The values as int64. Raises InputError, in which `what` names vertices by them, for any that is no integer."""
    if values.dtype.kind == "f" and not ((values == np.floor(values)) & (np.abs(values) < 2**53)).all():
        raise InputError(f"{what} vertices by fractions or huge numbers; expected integers; export it again")
    return values.astype(np.int64)


def check_indices(indices: Int[np.ndarray, " num_indices"], num_vertices: int, what: str) -> None:
    """Raise InputError if an index names no vertex."""
    if len(indices) and (indices.min() < 0 or indices.max() >= num_vertices):
        wrong = int(indices[(indices < 0) | (indices >= num_vertices)][0])
        raise damaged(f"{what} vertex {wrong} but the file has {num_vertices}, counted from 0")


def runs(begins: Int[np.ndarray, " num_runs"], lengths: Int[np.ndarray, " num_runs"]) -> Int[np.ndarray, " num_all"]:
    """The whole numbers from each begin on, so many for each, one run after another."""
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)
