"""The arrays of a glTF: accessors over views of buffers, sparse and normalized ones included."""

from functools import cache

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..errors import InputError
from .gltf_file import Accessor, BufferView, Gltf, ReadFile, item, read_buffer
from .raw import damaged

_DTYPES = {5120: "i1", 5121: "u1", 5122: "i2", 5123: "u2", 5125: "u4", 5126: "f4", 5130: "f8"}
_INDEX_TYPES = (5121, 5123, 5125)
_COMPONENTS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_LARGEST = {"i1": 127.0, "u1": 255.0, "i2": 32767.0, "u2": 65535.0}  # what means 1 where normalized


class Arrays:
    """What the accessors of a document hold. Methods raise InputError for what is not as the standard says."""

    def __init__(self, gltf: Gltf, read_file: ReadFile) -> None:
        self.document = gltf.document
        self._buffer = cache(lambda number: read_buffer(gltf, number, read_file))

    def has_data(self, number: int) -> bool:
        """Whether an accessor says where its values are; else an extension may."""
        accessor = self._accessor(number)
        return accessor.buffer_view is not None or accessor.sparse is not None

    def count(self, number: int) -> int:
        """Of an accessor's elements."""
        return self._accessor(number).count

    def values(self, number: int, kind: str, *, what: str) -> Shaped[np.ndarray, "count num_components"]:
        """An accessor of "VEC3" or the like, of its component type."""
        accessor = self._accessor(number)
        if accessor.type != kind:
            raise InputError(f"{what} has type {accessor.type}; expected {kind}; export it again")
        if accessor.component_type not in _DTYPES:
            raise InputError(f"{what} has the unknown componentType {accessor.component_type}; export it again")
        dtype, width = np.dtype("<" + _DTYPES[accessor.component_type]), _COMPONENTS[kind]
        if accessor.buffer_view is None:
            num_bytes = sum(buffer.byte_length for buffer in self.document.buffers)
            if accessor.count > num_bytes:
                raise damaged(f"{what} has {accessor.count} zeros in a file of {num_bytes} bytes")
            values = np.zeros((accessor.count, width), dtype)
        else:
            values = self._dense(accessor.buffer_view, accessor.byte_offset, accessor.count, dtype, width, what)
        if (sparse := accessor.sparse) is None:
            return values
        if sparse.indices.component_type not in _INDEX_TYPES:
            raise InputError(f"{what} has sparse indices that are no unsigned integers; export it again")
        index_type = np.dtype("<" + _DTYPES[sparse.indices.component_type])
        where, others = (
            self._dense(part.buffer_view, part.byte_offset, sparse.count, type_, num, what)
            for part, type_, num in ((sparse.indices, index_type, 1), (sparse.values, dtype, width))
        )
        if len(where) and where.max() >= accessor.count:
            raise damaged(f"{what} has {accessor.count} elements but sparse ones up to {where.max()}")
        values = values.copy()
        values[where[:, 0]] = others
        return values

    def floats(self, number: int, kind: str, *, what: str) -> Float[np.ndarray, "count num_components"]:
        """An accessor of "VEC3" or the like, as float32, or float64 where these are needed for its values."""
        return self.as_floats(number, self.values(number, kind, what=what), what=what)

    def as_floats(
        self, number: int, values: Shaped[np.ndarray, "count num_components"], *, what: str
    ) -> Float[np.ndarray, "count num_components"]:
        """Values of an accessor's component type, divided by the type's largest where the accessor is normalized."""
        dtype = values.dtype.str[1:]
        if not self._accessor(number).normalized or values.dtype.kind == "f":
            return values.astype(np.float64 if dtype in ("u4", "f8") else np.float32)
        if dtype not in _LARGEST:
            raise InputError(f"{what} is normalized {values.dtype}, which glTF does not have; export it again")
        return np.maximum(values.astype(np.float64) / _LARGEST[dtype], -1.0)

    def integers(self, number: int, kind: str, *, what: str) -> Int[np.ndarray, "count num_components"]:
        """An accessor of unsigned integers."""
        accessor = self._accessor(number)
        if accessor.component_type not in _INDEX_TYPES:
            raise InputError(
                f"{what} has componentType {accessor.component_type}; expected unsigned integers; export it again"
            )
        return self.values(number, kind, what=what).astype(np.int64)

    def bytes_of(self, view_number: int) -> bytes:
        """The bytes of a view."""
        view = self._view(view_number)
        return self._buffer(view.buffer)[view.byte_offset : view.byte_offset + view.byte_length]

    def _accessor(self, number: int) -> Accessor:
        return item(self.document.accessors, number, "accessors")

    def _view(self, number: int) -> BufferView:
        view = item(self.document.buffer_views, number, "bufferViews")
        buffer = item(self.document.buffers, view.buffer, "buffers")
        if view.byte_offset + view.byte_length > buffer.byte_length:
            end = view.byte_offset + view.byte_length
            raise damaged(f"bufferViews[{number}] ends at byte {end} of a buffer of {buffer.byte_length}")
        return view

    def _dense(
        self, view_number: int, offset: int, count: int, dtype: np.dtype, width: int, what: str
    ) -> Shaped[np.ndarray, "count num_components"]:
        view = self._view(view_number)
        size = width * dtype.itemsize
        if not count:
            return np.zeros((0, width), dtype)
        stride, place = view.byte_stride or size, f"bufferViews[{view_number}]"
        if stride < size:
            raise InputError(
                f"{what} has elements of {size} bytes, which {place} puts every {stride} bytes, one over the other; "
                "export it again"
            )
        if offset + stride * (count - 1) + size > view.byte_length:
            raise damaged(
                f"{what} has {count} elements of {size} bytes, which {place} of {view.byte_length} bytes can't hold"
            )
        buffer = self._buffer(view.buffer)
        return np.ndarray((count, width), dtype, buffer, view.byte_offset + offset, (stride, dtype.itemsize))
