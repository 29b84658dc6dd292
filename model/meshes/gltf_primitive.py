"""A glTF primitive: its triangles, morphed by weights and posed by joints."""

from functools import cached_property

import DracoPy
import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import ValidationError

from ..errors import InputError
from .gltf_accessors import Arrays
from .gltf_file import Draco, Primitive
from .mesh import Faces, Vertices
from .raw import check_indices, damaged

MODES = ("points", "lines", "lines", "lines", "triangles", "triangle strips", "triangle fans")
TRIANGLES, _STRIP, _FAN = 4, 5, 6
DRACO = "KHR_draco_mesh_compression"


class _Draco:
    """The decoded piece that holds a primitive's triangles and attributes.

    Raises InputError where it is damaged or not what the accessors declare.
    """

    def __init__(self, primitive: Primitive, arrays: Arrays, place: str) -> None:
        self._place = place
        try:
            self._extension = Draco.model_validate(primitive.extensions[DRACO])
        except ValidationError as error:
            raise InputError(f"{DRACO} of {place} has no bufferView or no attributes; export it again") from error
        data = arrays.bytes_of(self._extension.buffer_view)
        try:
            self._mesh = DracoPy.decode(data)
            self.faces: Faces = np.asarray(self._mesh.faces, np.int64).reshape(-1, 3)
        except (DracoPy.FileTypeException, AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"{place} can't be decoded ({DRACO}: {error}); export it again, or without it") from error
        if primitive.indices is not None and arrays.count(primitive.indices) != self.faces.size and primitive.mode == 4:
            raise damaged(
                f"{place} declares {arrays.count(primitive.indices)} indices but {self.faces.size} are compressed in it"
            )

    def attribute(self, name: str, count: int) -> Shaped[np.ndarray, "count num_components"] | None:
        """An attribute's values; None if it is not compressed."""
        if name not in self._extension.attributes:
            return None
        found = self._mesh.get_attribute_by_unique_id(self._extension.attributes[name])
        num_found = 0 if found is None else len(found["data"])
        if found is None or num_found != count:
            raise damaged(f"{self._place} declares {count} values of {name} but {num_found} are compressed in it")
        return np.asarray(found["data"]).reshape(count, -1)


class Triangles:
    """A primitive of triangles. Methods raise InputError for what is not as the standard says."""

    def __init__(self, primitive: Primitive, arrays: Arrays, place: str) -> None:
        self._primitive, self._arrays, self._place = primitive, arrays, place

    @cached_property
    def _draco(self) -> _Draco | None:
        """What is compressed, unless the same is there uncompressed and the document says that this may be read."""
        if DRACO not in self._primitive.extensions:
            return None
        needed = [self._primitive.attributes["POSITION"]]
        needed += [] if self._primitive.indices is None else [self._primitive.indices]
        required = DRACO in self._arrays.document.extensions_required
        if not required and all(self._arrays.has_data(number) for number in needed):
            return None
        return _Draco(self._primitive, self._arrays, self._place)

    def _values(self, name: str, kind: str) -> Shaped[np.ndarray, "num_vertices num_components"]:
        """An attribute's values, of its component type."""
        number, what = self._primitive.attributes[name], f"{name} of {self._place}"
        if self._draco is not None:
            found = self._draco.attribute(name, self._arrays.count(number))
            if found is not None:
                return found
        if name == "POSITION" and not self._arrays.has_data(number):
            raise InputError(f"{what} has no data; export it again")
        return self._arrays.values(number, kind, what=what)

    def _floats(self, name: str, kind: str) -> Float[np.ndarray, "num_vertices num_components"]:
        number, what = self._primitive.attributes[name], f"{name} of {self._place}"
        return self._arrays.as_floats(number, self._values(name, kind), what=what)

    @cached_property
    def vertices(self) -> Vertices:
        """As they are in the buffers, float32 or float64."""
        return self._floats("POSITION", "VEC3")

    @cached_property
    def faces(self) -> Faces:
        """Of the topology that the primitive has, counterclockwise."""
        if self._draco is not None:
            corners, mode = self._draco.faces.reshape(-1), TRIANGLES
        else:
            corners, mode = self._corners(), self._primitive.mode
        check_indices(corners, len(self.vertices), f"{self._place} names")
        if mode == TRIANGLES:
            if len(corners) % 3:
                raise damaged(f"{self._place} has {len(corners)} corners of triangles, no multiple of 3")
            return corners.reshape(-1, 3)
        if mode == _FAN:
            return np.stack([corners[1:-1], corners[2:], np.broadcast_to(corners[:1], len(corners[2:]))], 1)
        faces = np.stack([corners[:-2], corners[1:-1], corners[2:]], 1)
        faces[1::2] = faces[1::2, [0, 2, 1]]
        return faces

    def _corners(self) -> Int[np.ndarray, " num_corners"]:
        number, what = self._primitive.indices, f"indices of {self._place}"
        if number is None:
            return np.arange(len(self.vertices))
        if not self._arrays.has_data(number):
            raise InputError(f"the {what} have no data; export it again")
        return self._arrays.integers(number, "SCALAR", what=what)[:, 0]

    def morphed(self, weights: tuple[float, ...]) -> Vertices:
        """The vertices, moved by each morph target as far as its weight says."""
        targets = self._primitive.targets
        if any(weights) and len(weights) != len(targets):
            raise InputError(
                f"{self._place} has {len(targets)} morph targets but {len(weights)} weights; export it again"
            )
        vertices = self.vertices
        for number, (weight, target) in enumerate(zip(weights, targets, strict=False)):
            if weight and "POSITION" in target:
                what = f"POSITION of targets[{number}] of {self._place}"
                moves = self._arrays.floats(target["POSITION"], "VEC3", what=what)
                if len(moves) != len(vertices):
                    raise InputError(f"{what} has {len(moves)} elements; expected {len(vertices)}; export it again")
                vertices = vertices + np.float64(weight) * moves
        return vertices

    @property
    def has_joints(self) -> bool:
        """Whether its vertices name joints of a skin."""
        return any(name.startswith(("JOINTS_", "WEIGHTS_")) for name in self._primitive.attributes)

    def posed(self, vertices: Vertices, joints: Float[np.ndarray, "num_joints 4 4"]) -> tuple[Vertices, bool]:
        """Vertices moved by the weighted mean of their joints' transforms, and whether these mirror them."""
        numbers, weights = self._influences(len(vertices), len(joints))
        signs = np.linalg.slogdet(joints[:, :3, :3]).sign
        homogeneous = np.concatenate([vertices.astype(np.float64), np.ones((len(vertices), 1))], 1)
        moved, mirrored = np.zeros((len(vertices), 3)), 0.0
        for number, weight in zip(numbers.T, weights.T, strict=True):
            moved += weight[:, None] * np.einsum("vij,vj->vi", joints[number, :3], homogeneous)
            mirrored -= float(weight @ signs[number])
        return moved, mirrored > 0

    def _influences(
        self, num_vertices: int, num_joints: int
    ) -> tuple[Int[np.ndarray, "num_vertices num_influences"], Float[np.ndarray, "num_vertices num_influences"]]:
        """For each vertex joints of its skin and their weights, which sum to 1."""
        names = self._primitive.attributes
        num_sets = max(sum(name.startswith(begin) for name in names) for begin in ("JOINTS_", "WEIGHTS_"))
        numbers, weights = [], []
        for i in range(num_sets):
            if f"WEIGHTS_{i}" not in names or f"JOINTS_{i}" not in names:
                raise InputError(f"{self._place} has only one of JOINTS_{i} and WEIGHTS_{i}; export it again")
            weights.append(self._floats(f"WEIGHTS_{i}", "VEC4"))
            numbers.append(self._values(f"JOINTS_{i}", "VEC4").astype(np.int64))
        if any(len(values) != num_vertices for values in numbers + weights):
            raise InputError(f"{self._place} has not as many JOINTS and WEIGHTS as vertices; export it again")
        joint, weight = np.concatenate(numbers, 1), np.concatenate(weights, 1).astype(np.float64)
        check_indices(joint[weight != 0], num_joints, f"JOINTS of {self._place} name, in place of a joint,")
        total = weight.sum(1, keepdims=True)
        if not (total > 0).all():
            raise InputError(f"{int((~(total > 0)).sum())} vertices of {self._place} have no weights; export it again")
        return np.where(weight != 0, joint, 0), weight / total
