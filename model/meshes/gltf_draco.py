"""KHR_draco_mesh_compression: a primitive's triangles and attributes in one compressed piece."""

from typing import Annotated

import DracoPy
import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, Field, ValidationError

from ..errors import InputError
from .gltf_accessors import Arrays
from .gltf_schema import Primitive
from .mesh import Faces

DRACO = "KHR_draco_mesh_compression"


class _Extension(BaseModel):
    view: Annotated[int, Field(ge=0, alias="bufferView")]
    attributes: dict[str, int]  # unique numbers of attributes in the compressed piece


class Draco:
    """The decoded piece of a primitive. Raises InputError where it is damaged or not what the accessors declare."""

    def __init__(self, primitive: Primitive, arrays: Arrays, place: str) -> None:
        self._place = place
        try:
            self._extension = _Extension.model_validate(primitive.extensions[DRACO])
        except ValidationError as error:
            raise InputError(f"{DRACO} of {place} has no bufferView or no attributes; export it again") from error
        data = arrays.bytes_of(self._extension.view)
        try:
            self._mesh = DracoPy.decode(data)
            self.faces: Faces = np.asarray(self._mesh.faces, np.int64).reshape(-1, 3)
        except (DracoPy.FileTypeException, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{place} can't be decoded ({DRACO}: {error}); export it again, or without it") from error
        if primitive.indices is not None and arrays.count(primitive.indices) != self.faces.size and primitive.mode == 4:
            raise InputError(
                f"{place} declares {arrays.count(primitive.indices)} indices but {self.faces.size} are "
                "compressed in it; it is damaged; export it again"
            )

    def attribute(self, name: str, count: int) -> Shaped[np.ndarray, "count num_components"] | None:
        """An attribute's values; None if it is not compressed."""
        if name not in self._extension.attributes:
            return None
        found = self._mesh.get_attribute_by_unique_id(self._extension.attributes[name])
        if found is None or len(found["data"]) != count:
            raise InputError(
                f"{self._place} declares {count} values of {name} but {0 if found is None else len(found['data'])} are "
                "compressed in it; it is damaged; export it again"
            )
        return np.asarray(found["data"]).reshape(count, -1)
