"""glTF 2.0 (Khronos, ISO/IEC 12113), as .glb and as .gltf with its buffers: the triangles that its scene shows.

Meshes are morphed by their default weights, posed by their skins and put where their nodes are. Animations, materials
and cameras do not count. An extension that would change the shape and is not read is refused if it is required, and
noted if it is not.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError, printable
from .gltf_accessors import Arrays
from .gltf_file import Document, Node, ReadFile, item, open_gltf
from .gltf_primitive import DRACO, MODES, TRIANGLES, Triangles
from .mesh import Faces, Vertices
from .raw import RawMesh, told

_INSTANCING, _VISIBILITY = "EXT_mesh_gpu_instancing", "KHR_node_visibility"
_READ = {_INSTANCING, _VISIBILITY, DRACO, "KHR_mesh_quantization"}
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


class _Shown(NamedTuple):
    """A node with a mesh that the scene shows."""

    node: Node
    mesh: int
    transforms: Float[np.ndarray, "num_instances 4 4"]  # float64, of column vectors, to the scene's frame
    place: str  # in the document, for messages


def read(content: bytes, read_file: ReadFile) -> RawMesh:
    """Raises InputError for what is not as the standard says, or would need an extension that is not read."""
    gltf = open_gltf(content)
    document, notes = gltf.document, Counter({"bytes after the end of the GLB ignored": gltf.num_after})
    _check_extensions(document, notes)
    arrays = Arrays(gltf, read_file)
    nodes, worlds = _shown_nodes(document, arrays, notes)
    reader = _Reader(document, arrays, worlds, notes)
    for shown in nodes:
        reader.add(shown)
    notes["animations ignored"] = len(document.animations)
    if not any(len(faces) for _, faces in reader.parts):
        said = "; ".join(told(notes)) or f"it has {len(document.meshes)} meshes and {len(document.nodes)} nodes"
        raise InputError(f"its scene shows no triangles ({said}); export it as a surface")
    vertices, faces = zip(*reader.parts, strict=True)
    firsts = np.cumsum([0, *map(len, vertices[:-1])]).tolist()
    moved = [part + first for part, first in zip(faces, firsts, strict=True)]
    return RawMesh(np.concatenate(vertices), np.concatenate(moved), notes)


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


class _Reader:
    """Gathers the triangles of shown nodes."""

    def __init__(
        self, document: Document, arrays: Arrays, worlds: Float[np.ndarray, "num_nodes 4 4"], notes: Counter[str]
    ) -> None:
        self._document, self._arrays, self._worlds, self._notes = document, arrays, worlds, notes
        self._triangles = dict[str, Triangles]()  # by place: many nodes may show a mesh
        self.parts = list[tuple[Vertices, Faces]]()

    def add(self, shown: _Shown) -> None:
        """All primitives of a node's mesh, where the node puts them."""
        for number, primitive in enumerate(item(self._document.meshes, shown.mesh, "meshes").primitives):
            place = f"meshes[{shown.mesh}].primitives[{number}]"
            if not 0 <= primitive.mode < len(MODES):
                raise InputError(f"{place} has the unknown mode {primitive.mode}; export it again")
            if primitive.mode < TRIANGLES:
                self._notes[f"primitives of {MODES[primitive.mode]} ignored"] += 1
            elif "POSITION" not in primitive.attributes:
                self._notes["primitives without positions ignored"] += 1
            else:
                if place not in self._triangles:
                    self._triangles[place] = Triangles(primitive, self._arrays, place)
                self._add_triangles(shown, self._triangles[place])

    def _add_triangles(self, shown: _Shown, triangles: Triangles) -> None:
        weights = shown.node.weights or self._document.meshes[shown.mesh].weights
        vertices, faces = triangles.morphed(weights), triangles.faces
        if any(weights):
            self._notes["primitives morphed by their default weights"] += 1
        if shown.node.skin is None:
            for matrix in shown.transforms:
                mirrored = np.linalg.slogdet(matrix[:3, :3]).sign < 0
                self.parts.append((_moved(vertices, matrix), faces[:, ::-1] if mirrored else faces))
            return
        if _INSTANCING in shown.node.extensions:
            raise InputError(f"{shown.place} has a skin and instances, which glTF does not have; export it again")
        joints, mirrored = self._joints(shown.node.skin), False
        if triangles.has_joints:
            vertices, mirrored = triangles.posed(vertices, joints)
            self._notes["primitives posed by their skins"] += 1
        else:  # still, its node's transform does not count
            self._notes["primitives with a skin but without joints left unposed"] += 1
        self.parts.append((vertices, faces[:, ::-1] if mirrored else faces))

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


def _shown_nodes(
    document: Document, arrays: Arrays, notes: Counter[str]
) -> tuple[list[_Shown], Float[np.ndarray, "num_nodes 4 4"]]:
    """The nodes of the default scene (or the first, or all where there is none) that have a mesh and are visible.

    With them, the transforms of all nodes of the document to the scene's frame, float64. Notes what it leaves out.
    Raises InputError where nodes are no trees, or a transform is none.
    """
    order, parents = _from_roots(document)
    worlds = np.tile(np.eye(4), (len(document.nodes), 1, 1))
    shown, hidden = _roots_of_scene(document), set[int]()
    found = list[_Shown]()
    for number in order:
        node, parent = document.nodes[number], parents[number]
        worlds[number] = _local(node, number) if parent is None else worlds[parent] @ _local(node, number)
        if parent in shown:
            shown.add(number)
        said = node.extensions.get(_VISIBILITY)
        if parent in hidden or (isinstance(said, dict) and said.get("visible") is False):
            hidden.add(number)
        if node.mesh is None:
            continue
        place = f"nodes[{number}]" + (f" ({node.name[:40]!r})" if node.name else "")
        if number not in shown:
            notes["meshes in other scenes or in none left out"] += 1
        elif number in hidden:
            notes[f"nodes hidden by {_VISIBILITY} left out"] += 1
        elif not worlds[number, :3, :3].any():
            notes["nodes scaled to nothing left out"] += 1
        else:
            transforms = worlds[number] @ _instances(node, arrays, place)
            found.append(_Shown(node, node.mesh, transforms, place))
    return found, worlds


def _from_roots(document: Document) -> tuple[list[int], list[int | None]]:
    """All nodes, parents before their children, and the parent of each."""
    parents: list[int | None] = [None] * len(document.nodes)
    for number, node in enumerate(document.nodes):
        for child in node.children:
            item(document.nodes, child, "nodes")
            if parents[child] is not None:
                raise InputError(f"nodes[{child}] has two parents; nodes must be trees; export it again")
            parents[child] = number
    order = [number for number, parent in enumerate(parents) if parent is None]
    for number in order:
        order.extend(document.nodes[number].children)
    if len(order) < len(document.nodes):
        raise InputError("some of its nodes are each other's parents; nodes must be trees; export it again")
    return order, parents


def _roots_of_scene(document: Document) -> set[int]:
    if document.scene is None and not document.scenes:
        return set(range(len(document.nodes)))
    roots = set(item(document.scenes, document.scene or 0, "scenes").nodes)
    for root in roots:
        item(document.nodes, root, "nodes")
    return roots


def _local(node: Node, number: int) -> Float[np.ndarray, "4 4"]:
    if node.matrix is not None:
        matrix = np.array(node.matrix).reshape(4, 4).T  # it goes column by column
        if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6:
            raise InputError(f"nodes[{number}].matrix is a projection; expected an affine transform; export it again")
        matrix[3] = [0, 0, 0, 1]
        return matrix
    one = [np.array([values]) for values in (node.translation, node.rotation, node.scale)]
    return _composed(*one, what=f"nodes[{number}]")[0]


def _composed(
    translation: Float[np.ndarray, "num 3"],
    rotation: Float[np.ndarray, "num 4"],
    scale: Float[np.ndarray, "num 3"],
    *,
    what: str,
) -> Float[np.ndarray, "num 4 4"]:
    """Scaled, then turned by the unit quaternions x y z w, then moved."""
    largest = np.abs(rotation).max(1, keepdims=True)
    if (wrong := ~((largest > 0) & (largest < np.inf))[:, 0]).any():
        raise InputError(f"the rotation of {what} is {rotation[wrong][0].tolist()}; expected a unit quaternion")
    rotation = np.ldexp(rotation, -np.frexp(largest)[1])  # so that no square overflows
    x, y, z, w = (rotation / np.linalg.norm(rotation, axis=1, keepdims=True)).T
    turned = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrices = np.tile(np.eye(4), (len(translation), 1, 1))
    matrices[:, :3, :3] = turned.transpose(2, 0, 1) * scale[:, None, :]
    matrices[:, :3, 3] = translation
    return matrices


def _instances(node: Node, arrays: Arrays, place: str) -> Float[np.ndarray, "num_instances 4 4"]:
    """Of EXT_mesh_gpu_instancing in the node's frame; the identity for a node without."""
    said = node.extensions.get(_INSTANCING)
    if said is None:
        return np.eye(4)[None]
    what = f"{_INSTANCING} of {place}"
    named = said.get("attributes") if isinstance(said, dict) else None
    if not isinstance(named, dict) or not all(isinstance(n, int) and n >= 0 for n in named.values()):
        raise InputError(f"{what} has no attributes; expected accessors; export it again")
    kinds = {"TRANSLATION": "VEC3", "ROTATION": "VEC4", "SCALE": "VEC3"}
    read = {
        name: arrays.floats(named[name], kind, what=f"{name} of {what}").astype(np.float64)
        for name, kind in kinds.items()
        if name in named
    }
    counts = {len(values) for values in read.values()}
    if len(counts) != 1:
        raise InputError(f"the attributes of {what} have {sorted(counts) or 'no'} elements; expected equally many")
    (count,) = counts
    return _composed(
        read.get("TRANSLATION", np.zeros((count, 3))),
        read.get("ROTATION", np.tile([0.0, 0.0, 0.0, 1.0], (count, 1))),
        read.get("SCALE", np.ones((count, 3))),
        what=what,
    )
