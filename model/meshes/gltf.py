"""glTF 2.0 (Khronos, ISO/IEC 12113), as .glb and as .gltf with its buffers: the triangles that its scene shows.

Meshes are morphed by their default weights, posed by their skins and put where their nodes are. Animations, materials
and cameras do not count. An extension that would change the shape and is not read is refused if it is required, and
noted if it is not.
"""

from collections import Counter
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError, printable
from .gltf_accessors import Arrays
from .gltf_draco import DRACO
from .gltf_file import ReadFile, open_gltf
from .gltf_primitive import MODES, TRIANGLES, Triangles
from .gltf_scene import INSTANCING, VISIBILITY, Shown, shown_nodes
from .gltf_schema import Document, item
from .mesh import Faces, Vertices
from .raw import RawMesh

_READ = {INSTANCING, VISIBILITY, DRACO, "KHR_mesh_quantization"}
# Extensions of how a shape looks, or of what is known about it: it is the same without them.
_NEUTRAL = ("KHR_materials_", "KHR_texture_", "EXT_texture_", "MSFT_texture_", "KHR_lights_", "EXT_lights_", "KHR_xmp")
_NEUTRAL_NAMES = {
    "KHR_animation_pointer",
    "KHR_node_hoverability",
    "KHR_node_selectability",
    "KHR_audio_emitter",
    "KHR_physics_rigid_bodies",
    "KHR_implicit_shapes",
    "KHR_interactivity",
    "KHR_techniques_webgl",
    "EXT_mesh_features",
    "EXT_mesh_manifold",
    "EXT_structural_metadata",
    "EXT_instance_features",
    "CESIUM_primitive_outline",
    "MSFT_lod",
    "MSFT_packing_normalRoughnessMetallic",
    "MSFT_packing_occlusionRoughnessMetallic",
}


def read(content: bytes, read_file: ReadFile) -> RawMesh:
    """Raises InputError for what is not as the standard says, or would need an extension that is not read."""
    gltf = open_gltf(content)
    document = gltf.document
    notes = (*gltf.notes, *_check_extensions(document))
    arrays = Arrays(gltf, read_file)
    shows = shown_nodes(document, arrays)
    reader = _Reader(document, arrays, shows.worlds)
    for shown in shows.nodes:
        reader.add(shown)
    vertices, faces = reader.result()
    notes = (*notes, *shows.notes, *reader.notes())
    if document.animations:
        notes = (*notes, f"animations ignored: {len(document.animations)}")
    if not len(faces):
        said = "; ".join(notes) or f"it has {len(document.meshes)} meshes and {len(document.nodes)} nodes"
        raise InputError(f"its scene shows no triangles ({said}); export it as a surface")
    return RawMesh(vertices, faces, notes)


def _check_extensions(document: Document) -> tuple[str, ...]:
    unknown = [
        name
        for name in dict.fromkeys((*document.extensions_required, *document.extensions_used))
        if name not in _READ | _NEUTRAL_NAMES and not name.startswith(_NEUTRAL)
    ]
    required = [name for name in unknown if name in document.extensions_required]
    if required:
        raise InputError(
            f"it requires the extension{'s' * (len(required) > 1)} {printable(', '.join(required))}, which is not "
            "read; export it without"
        )
    return tuple(f"extension {printable(name)}, which is not required, ignored: 1" for name in unknown)


class _Part(NamedTuple):
    vertices: Vertices
    faces: Faces


class _Reader:
    """Gathers the triangles of shown nodes."""

    def __init__(self, document: Document, arrays: Arrays, worlds: Float[np.ndarray, "num_nodes 4 4"]) -> None:
        self._document, self._arrays, self._worlds = document, arrays, worlds
        self._parts, self._counts = list[_Part](), Counter[str]()
        self._triangles = cache(self._triangles_of)  # many nodes may show a mesh

    def notes(self) -> tuple[str, ...]:
        return tuple(f"{what}: {count}" for what, count in self._counts.items())

    def result(self) -> _Part:
        """All that was added, as one."""
        if not self._parts:
            return _Part(np.zeros((0, 3)), np.zeros((0, 3), np.int64))
        firsts = np.cumsum([0, *(len(part.vertices) for part in self._parts)])
        faces = [part.faces + first for part, first in zip(self._parts, firsts.tolist(), strict=False)]
        return _Part(np.concatenate([part.vertices for part in self._parts]), np.concatenate(faces))

    def add(self, shown: Shown) -> None:
        """All primitives of a node's mesh, where the node puts them."""
        for number, primitive in enumerate(item(self._document.meshes, shown.mesh, "meshes").primitives):
            if not 0 <= primitive.mode < len(MODES):
                raise InputError(
                    f"meshes[{shown.mesh}].primitives[{number}] has the unknown mode {primitive.mode}; export it again"
                )
            if primitive.mode < TRIANGLES:
                self._counts[f"primitives of {MODES[primitive.mode]} ignored"] += 1
            elif "POSITION" not in primitive.attributes:
                self._counts["primitives without positions ignored"] += 1
            else:
                self._add_triangles(shown, self._triangles(shown.mesh, number))

    def _triangles_of(self, mesh: int, number: int) -> Triangles:
        primitive = self._document.meshes[mesh].primitives[number]
        return Triangles(primitive, self._arrays, f"meshes[{mesh}].primitives[{number}]")

    def _add_triangles(self, shown: Shown, triangles: Triangles) -> None:
        weights = shown.node.weights or self._document.meshes[shown.mesh].weights
        vertices, faces = triangles.morphed(weights), triangles.faces
        if any(weights):
            self._counts["primitives morphed by their default weights"] += 1
        if shown.node.skin is not None:
            if INSTANCING in shown.node.extensions:
                raise InputError(f"{shown.place} has a skin and instances, which glTF does not have; export it again")
            joints = self._joints(shown.node.skin)
            if not triangles.has_joints:  # still, its node's transform does not count
                self._counts["primitives with a skin but without joints left unposed"] += 1
                self._parts.append(_Part(vertices, faces))
                return
            vertices, mirrored = triangles.posed(vertices, joints)
            self._counts["primitives posed by their skins"] += 1
            self._parts.append(_Part(vertices, faces[:, ::-1] if mirrored else faces))
            return
        for matrix in shown.transforms:
            mirrored = np.linalg.slogdet(matrix[:3, :3]).sign < 0
            self._parts.append(_Part(_moved(vertices, matrix), faces[:, ::-1] if mirrored else faces))

    def _joints(self, number: int) -> Float[np.ndarray, "num_joints 4 4"]:
        """What moves vertices with each joint of a skin."""
        skin = item(self._document.skins, number, "skins")
        for joint in skin.joints:
            item(self._document.nodes, joint, "nodes")
        worlds = self._worlds[list(skin.joints)]
        if skin.inverse_bind_matrices is None:
            return worlds
        inverse = self._arrays.floats(skin.inverse_bind_matrices, "MAT4", what=f"skins[{number}].inverseBindMatrices")
        if len(inverse) < len(worlds):
            raise InputError(f"skins[{number}] has {len(worlds)} joints but {len(inverse)} matrices; export it again")
        return worlds @ inverse[: len(worlds)].reshape(-1, 4, 4).transpose(0, 2, 1).astype(np.float64)


def _moved(vertices: Vertices, matrix: Float[np.ndarray, "4 4"]) -> Vertices:
    if np.array_equal(matrix, np.eye(4)):
        return vertices
    return vertices.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
