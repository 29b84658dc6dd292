"""Triangles or edges in a binary tree whose nodes stand, from afar, for all that is below them.

A walk begins at node 0. A node that is far enough counts by its sums; else its children 2i + 1 and 2i + 2 are visited,
and in the end the triangles or edges of a leaf one by one. See next_node for how it goes on.
"""

import numpy as np
from jaxtyping import Float, Int

from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Ints, Points, Vectors

wp.set_module_options(QUICK_TO_COMPILE)

_LEAF_TRIANGLES, _LEAF_EDGES = 1, 2  # at least; with more, more are looked at one by one that could count together


@wp.struct
class Tree:
    """A complete binary tree over triangles or edges in Morton order; arrays have one value per node unless noted."""

    corners: Points  # three per triangle, two per edge
    leaf_starts: Ints  # first triangle or edge of every leaf, and the end
    centre: Vectors  # weighted by area or length
    sums: Vectors  # of area times normal; of edges
    moments: wp.array[wp.mat33]  # sum of (place - centre) (outer product) vector area or edge
    shape: Vectors  # radius, and two factors of the error made by using sums and moments: see who builds them
    num_inner: int


def triangle_tree(triangles: Float[np.ndarray, "num_triangles 3 3"], *, device: str) -> Tree:
    """Sums are vector areas S. Factors: the sum of |S|, and 0."""
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]) / 2
    tree, nodes = _grow(triangles, normal, leaf=_LEAF_TRIANGLES, device=device)
    tree.shape = _send(np.stack([nodes.radius, nodes.weight, np.zeros_like(nodes.weight)], 1), wp.vec3, device)
    return tree


def edge_tree(edges: Float[np.ndarray, "num_edges 2 3"], *, device: str) -> Tree:
    """Sums are the edges' own. Factors: the sum's length and the lengths' sum."""
    tree, nodes = _grow(edges, edges[:, 1] - edges[:, 0], leaf=_LEAF_EDGES, device=device)
    length = np.linalg.norm(nodes.sums, axis=1)
    tree.shape = _send(np.stack([nodes.radius, length, nodes.weight], 1), wp.vec3, device)
    return tree


def seen_from(tree: Tree, gap: Float[np.ndarray, " num_nodes"]) -> wp.array:
    """For each node its centre, and the square of the distance from which on it counts by its sums and moments.

    `gap` is that from a point to what is in the node.
    """
    far = tree.shape.numpy()[:, 0] + gap + 1e-9  # more than 0: a centre is not far
    return _send(np.hstack([tree.centre.numpy(), far[:, None] ** 2]), wp.vec4, tree.centre.device)


class _Nodes:
    """The sums of every node, from those of the leaves."""

    def __init__(
        self,
        elements: Float[np.ndarray, "num_elements corners 3"],
        vectors: Float[np.ndarray, "num_elements 3"],
        starts: Int[np.ndarray, " num_leaves"],
    ) -> None:
        middle = elements.mean(1)
        weight = np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12  # keeps the centre of flat groups defined
        moments = (middle[:, :, None] * vectors[:, None, :]).reshape(-1, 9)
        levels = [
            [
                np.add.reduceat(np.hstack([weight, weight * middle, vectors, moments]), starts),
                np.minimum.reduceat(elements.min(1), starts),
                np.maximum.reduceat(elements.max(1), starts),
            ]
        ]
        while len(levels[0][0]) > 1:
            sums, low, high = (part.reshape(-1, 2, part.shape[1]) for part in levels[0])
            levels.insert(0, [sums.sum(1), low.min(1), high.max(1)])
        sums, low, high = (np.concatenate(parts) for parts in zip(*levels, strict=True))
        self.weight = sums[:, 0]
        self.centre, self.sums = sums[:, 1:4] / sums[:, :1], sums[:, 4:7]
        self.radius = np.linalg.norm(np.maximum(high - self.centre, self.centre - low), axis=1)
        self.moments = sums[:, 7:].reshape(-1, 3, 3) - self.centre[:, :, None] * self.sums[:, None, :]


def _grow(
    elements: Float[np.ndarray, "num_elements corners 3"],
    vectors: Float[np.ndarray, "num_elements 3"],
    *,
    leaf: int,
    device: str,
) -> tuple[Tree, _Nodes]:
    """The tree without shape."""
    order = _morton_order(elements.mean(1))
    depth = max(int(np.log2(max(len(elements) // leaf, 1))), 0)
    starts = np.arange(2**depth + 1) * len(elements) // 2**depth
    nodes = _Nodes(elements[order], vectors[order], starts[:-1])
    tree = Tree()
    tree.corners = wp.array(elements[order].reshape(-1, 3), dtype=wp.vec3d, device=device)
    tree.leaf_starts = wp.array(starts.astype(np.int32), dtype=wp.int32, device=device)
    tree.centre = _send(nodes.centre, wp.vec3, device)
    tree.sums = _send(nodes.sums, wp.vec3, device)
    tree.moments = _send(nodes.moments, wp.mat33, device)
    tree.num_inner = 2**depth - 1
    return tree, nodes


def _send(values: np.ndarray, dtype: type, device: str) -> wp.array:
    return wp.array(np.ascontiguousarray(values, np.float32), dtype=dtype, device=device)


def _morton_order(points: Float[np.ndarray, "num_points 3"]) -> Int[np.ndarray, " num_points"]:
    low = points.min(0)
    cells = ((points - low) / max(np.ptp(points, axis=0).max(), 1e-30) * 1023).astype(np.int64)
    bits = (cells[:, :, None] >> np.arange(10)) & 1
    return (bits << (3 * np.arange(10) + np.arange(3)[:, None])).sum((1, 2)).argsort(kind="stable")


@wp.func
def next_node(node: int) -> int:
    """The node to visit when `node` and all below it are done; 0 when the walk is over."""
    while node > 0 and node % 2 == 0:  # a right child: its parent is done as well
        node = (node - 1) // 2
    return wp.where(node == 0, 0, node + 1)
