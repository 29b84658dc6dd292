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
from .gltf_file import ReadFile, open_gltf
from .gltf_primitive import DRACO, MODES, TRIANGLES, Triangles
from .gltf_scene import INSTANCING, VISIBILITY, Shown, shown_nodes
from .gltf_schema import Document, item
from .mesh import Faces, Vertices
from .raw import RawMesh, told

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
    document, notes = gltf.document, Counter({"bytes after the end of the GLB ignored": gltf.num_after})
    _check_extensions(document, notes)
    arrays = Arrays(gltf, read_file)
    shows = shown_nodes(document, arrays, notes)
    reader = _Reader(document, arrays, shows.worlds, notes)
    for shown in shows.nodes:
        reader.add(shown)
    notes["animations ignored"] = len(document.animations)
    parts = reader.parts
    if not any(len(part.faces) for part in parts):
        said = "; ".join(told(notes)) or f"it has {len(document.meshes)} meshes and {len(document.nodes)} nodes"
        raise InputError(f"its scene shows no triangles ({said}); export it as a surface")
    firsts = np.cumsum([0, *(len(part.vertices) for part in parts[:-1])]).tolist()
    faces = [part.faces + first for part, first in zip(parts, firsts, strict=True)]
    return RawMesh(np.concatenate([part.vertices for part in parts]), np.concatenate(faces), notes)


def _check_extensions(document: Document, notes: Counter[str]) -> None:
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
    notes.update({f"extension {printable(name)}, which is not required, ignored": 1 for name in unknown})


class _Part(NamedTuple):
    vertices: Vertices
    faces: Faces


class _Reader:
    """Gathers the triangles of shown nodes."""

    def __init__(
        self, document: Document, arrays: Arrays, worlds: Float[np.ndarray, "num_nodes 4 4"], notes: Counter[str]
    ) -> None:
        self._document, self._arrays, self._worlds, self._notes = document, arrays, worlds, notes
        self._triangles = cache(self._triangles_of)  # many nodes may show a mesh
        self.parts = list[_Part]()

    def add(self, shown: Shown) -> None:
        """All primitives of a node's mesh, where the node puts them."""
        for number, primitive in enumerate(item(self._document.meshes, shown.mesh, "meshes").primitives):
            if not 0 <= primitive.mode < len(MODES):
                raise InputError(
                    f"meshes[{shown.mesh}].primitives[{number}] has the unknown mode {primitive.mode}; export it again"
                )
            if primitive.mode < TRIANGLES:
                self._notes[f"primitives of {MODES[primitive.mode]} ignored"] += 1
            elif "POSITION" not in primitive.attributes:
                self._notes["primitives without positions ignored"] += 1
            else:
                self._add_triangles(shown, self._triangles(shown.mesh, number))

    def _triangles_of(self, mesh: int, number: int) -> Triangles:
        primitive = self._document.meshes[mesh].primitives[number]
        return Triangles(primitive, self._arrays, f"meshes[{mesh}].primitives[{number}]")

    def _add_triangles(self, shown: Shown, triangles: Triangles) -> None:
        weights = shown.node.weights or self._document.meshes[shown.mesh].weights
        vertices, faces = triangles.morphed(weights), triangles.faces
        if any(weights):
            self._notes["primitives morphed by their default weights"] += 1
        if shown.node.skin is None:
            for matrix in shown.transforms:
                mirrored = np.linalg.slogdet(matrix[:3, :3]).sign < 0
                self.parts.append(_Part(_moved(vertices, matrix), faces[:, ::-1] if mirrored else faces))
            return
        if INSTANCING in shown.node.extensions:
            raise InputError(f"{shown.place} has a skin and instances, which glTF does not have; export it again")
        joints, mirrored = self._joints(shown.node.skin), False
        if triangles.has_joints:
            vertices, mirrored = triangles.posed(vertices, joints)
            self._notes["primitives posed by their skins"] += 1
        else:  # still, its node's transform does not count
            self._notes["primitives with a skin but without joints left unposed"] += 1
        self.parts.append(_Part(vertices, faces[:, ::-1] if mirrored else faces))

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
