"""Which meshes a glTF shows, and where: its scene, its nodes' transforms, instances and visibility."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from .gltf_accessors import Arrays
from .gltf_schema import Document, Node, item

INSTANCING, VISIBILITY = "EXT_mesh_gpu_instancing", "KHR_node_visibility"


class Shown(NamedTuple):
    """A node with a mesh that the scene shows."""

    node: Node
    mesh: int
    transforms: Float[np.ndarray, "num_instances 4 4"]  # float64, of column vectors, to the scene's frame
    place: str  # in the document, for messages


class Shows(NamedTuple):
    nodes: list[Shown]
    worlds: Float[np.ndarray, "num_nodes 4 4"]  # of all nodes of the document, float64


def shown_nodes(document: Document, arrays: Arrays, notes: Counter[str]) -> Shows:
    """The nodes of the default scene (or the first, or all where there is none) that have a mesh and are visible.

    Notes what it leaves out. Raises InputError where nodes are no trees, or a transform is none.
    """
    order, parents = _from_roots(document)
    worlds = np.tile(np.eye(4), (len(document.nodes), 1, 1))
    shown, hidden = _roots_of_scene(document), set[int]()
    found = list[Shown]()
    for number in order:
        node, parent = document.nodes[number], parents[number]
        worlds[number] = _local(node, number) if parent is None else worlds[parent] @ _local(node, number)
        if parent in shown:
            shown.add(number)
        said = node.extensions.get(VISIBILITY)
        if parent in hidden or (isinstance(said, dict) and said.get("visible") is False):
            hidden.add(number)
        if node.mesh is None:
            continue
        place = f"nodes[{number}]" + (f" ({node.name[:40]!r})" if node.name else "")
        if number not in shown:
            notes["meshes in other scenes or in none left out"] += 1
        elif number in hidden:
            notes[f"nodes hidden by {VISIBILITY} left out"] += 1
        elif not worlds[number, :3, :3].any():
            notes["nodes scaled to nothing left out"] += 1
        else:
            transforms = worlds[number] @ _instances(node, arrays, place)
            found.append(Shown(node, node.mesh, transforms, place))
    return Shows(found, worlds)


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
    said = node.extensions.get(INSTANCING)
    if said is None:
        return np.eye(4)[None]
    what = f"{INSTANCING} of {place}"
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
