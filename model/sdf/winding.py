"""The generalised winding number of a triangle soup: the sum of its solid angles over 4 pi (Jacobson et al. 2013).

Far groups of triangles count together, as a dipole and the first moment about it (Barill et al. 2018), as soon as a
bound on the error of that says that they may.

The tree is a binary one, over triangles or edges, whose nodes stand, from afar, for all that is below them. A walk
begins at node 0. A node that is far enough counts by its sums; else its children 2i + 1 and 2i + 2 are visited, and in
the end the triangles or edges of a leaf one by one. See next_node for how it goes on.
"""

import numpy as np
from jaxtyping import Float, Int

from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Floats, Ints, Points, Seen, Vectors

wp.set_module_options(QUICK_TO_COMPILE)

_LEAF_TRIANGLES, _LEAF_EDGES = 1, 2  # at least; with more, more are looked at one by one that could count together
# Largest error that one group may add, as a winding number. Errors have either sign; tests hold their sum below 0.01.
GROUP_ERROR = 5e-3


@wp.struct
class Tree:
    """A complete binary tree over triangles or edges in Morton order; arrays have one value per node unless noted."""

    corners: Points  # three per triangle, two per edge
    leaf_starts: Ints  # first triangle or edge of every leaf, and the end
    centre: Vectors  # weighted by area or length
    sums: Vectors  # of vectors: of each triangle's area times normal, or of edges
    moments: wp.array[wp.mat33]  # sum of (place - centre) (outer product) vector area or edge
    shape: Vectors  # radius, the sum's length and the sum of lengths: what the error of using sums and moments rests on
    num_inner: int


def winding_numbers(
    points: Float[np.ndarray, "num_points 3"], triangles: Float[np.ndarray, "num_faces 3 3"], *, device: str
) -> Float[np.ndarray, " num_points"]:
    """Winding number at each point: 1 inside and 0 outside of a closed mesh whose normals point outward."""
    winding = wp.zeros(len(points), dtype=wp.float32, device=device)
    where = wp.array(np.ascontiguousarray(points, np.float64), dtype=wp.vec3d, device=device)
    tree = triangle_tree(triangles, device=device)
    inputs = [where, tree, seen_within(tree, GROUP_ERROR), winding]
    wp.launch(_wind_points, len(points), inputs=inputs, device=device)
    return winding.numpy()


def seen_within(tree: Tree, group_error: float) -> wp.array:
    """From where groups of triangles count together, each adding at most this to a winding number: see seen_from.

    A dipole field S.x / |x|^3, where |x| >= d, changes over a displacement e by no more than 3 |S| e^2 / d^4 besides
    its change to first order.
    """
    radius, _, area = tree.shape.numpy().T
    return seen_from(tree, (3 * area * radius**2 / (4 * np.pi * group_error)) ** 0.25)


def triangle_tree(triangles: Float[np.ndarray, "num_triangles 3 3"], *, device: str) -> Tree:
    """Its vectors are the triangles' areas times normals."""
    normal = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]) / 2
    return _grow(triangles, normal, leaf=_LEAF_TRIANGLES, device=device)


def edge_tree(edges: Float[np.ndarray, "num_edges 2 3"], *, device: str) -> Tree:
    """Its vectors are the edges' own."""
    return _grow(edges, edges[:, 1] - edges[:, 0], leaf=_LEAF_EDGES, device=device)


def seen_from(tree: Tree, gap: Float[np.ndarray, " num_nodes"]) -> wp.array:
    """For each node its centre, and the square of the distance from which on it counts by its sums and moments.

    `gap` is that from a point to what is in the node.
    """
    far = tree.shape.numpy()[:, 0] + gap + 1e-9  # more than 0: a centre is not far
    return _send(np.hstack([tree.centre.numpy(), far[:, None] ** 2]), wp.vec4, tree.centre.device)


def _grow(
    elements: Float[np.ndarray, "num_elements corners 3"],
    vectors: Float[np.ndarray, "num_elements 3"],
    *,
    leaf: int,
    device: str,
) -> Tree:
    """A tree whose leaves have at least so many elements each."""
    order = _morton_order(elements.mean(1))
    elements, vectors = elements[order], vectors[order]
    depth = max(int(np.log2(max(len(elements) // leaf, 1))), 0)
    starts = np.arange(2**depth + 1) * len(elements) // 2**depth
    middle = elements.mean(1)
    weight = np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12  # keeps the centre of flat groups defined
    moments = (middle[:, :, None] * vectors[:, None, :]).reshape(-1, 9)
    levels = [
        [
            np.add.reduceat(np.hstack([weight, weight * middle, vectors, moments]), starts[:-1]),
            np.minimum.reduceat(elements.min(1), starts[:-1]),
            np.maximum.reduceat(elements.max(1), starts[:-1]),
        ]
    ]
    while len(levels[0][0]) > 1:
        sums, low, high = (part.reshape(-1, 2, part.shape[1]) for part in levels[0])
        levels.insert(0, [sums.sum(1), low.min(1), high.max(1)])
    sums, low, high = (np.concatenate(parts) for parts in zip(*levels, strict=True))
    weight, centre, vector = sums[:, 0], sums[:, 1:4] / sums[:, :1], sums[:, 4:7]
    radius = np.linalg.norm(np.maximum(high - centre, centre - low), axis=1)
    tree = Tree()
    tree.corners = wp.array(elements.reshape(-1, 3), dtype=wp.vec3d, device=device)
    tree.leaf_starts = wp.array(starts.astype(np.int32), dtype=wp.int32, device=device)
    tree.centre, tree.sums = _send(centre, wp.vec3, device), _send(vector, wp.vec3, device)
    tree.moments = _send(sums[:, 7:].reshape(-1, 3, 3) - centre[:, :, None] * vector[:, None, :], wp.mat33, device)
    tree.shape = _send(np.stack([radius, np.linalg.norm(vector, axis=1), weight], 1), wp.vec3, device)
    tree.num_inner = 2**depth - 1
    return tree


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


@wp.func
def _half_angle(a: wp.vec3d, b: wp.vec3d, c: wp.vec3d) -> wp.vec2:
    """A complex number whose argument is half the solid angle of the triangle seen from the origin.

    van Oosterom and Strackee 1983. The volume in float64, as its sign says on which side of the triangle the origin is.
    """
    volume = wp.dot(a, wp.cross(b, c))
    a32 = wp.vec3(a)
    b32 = wp.vec3(b)
    c32 = wp.vec3(c)
    la = wp.length(a32)
    lb = wp.length(b32)
    lc = wp.length(c32)
    below = la * lb * lc + wp.dot(a32, b32) * lc + wp.dot(b32, c32) * la + wp.dot(c32, a32) * lb
    return wp.vec2(below, float(volume))


@wp.func
def winding_number(q: wp.vec3d, tree: Tree, seen: Seen) -> tuple[float, int]:
    """Of the tree's triangles at q, and how many nodes and triangles that took. `seen` is what seen_within gives."""
    q32 = wp.vec3(q)
    dipoles = float(0.0)  # solid angle
    # Half the solid angle of all near triangles: the argument of the product of theirs, and whole turns.
    product = wp.vec2(1.0, 0.0)
    turns = int(0)
    node = int(0)
    visits = int(0)
    walking = int(1)
    while walking == 1:
        visits += 1
        group = seen[node]
        to_group = wp.vec3(group[0], group[1], group[2]) - q32
        squared = wp.dot(to_group, to_group)
        if squared >= group[3]:
            moment = tree.moments[node]
            spread = wp.trace(moment) - 3.0 * wp.dot(to_group, moment * to_group) / squared
            dipoles += (wp.dot(tree.sums[node], to_group) + spread) / (squared * wp.sqrt(squared))
            node = next_node(node)
        elif node < tree.num_inner:
            node = 2 * node + 1
        else:
            leaf = node - tree.num_inner
            visits += tree.leaf_starts[leaf + 1] - tree.leaf_starts[leaf]
            for t in range(tree.leaf_starts[leaf], tree.leaf_starts[leaf + 1]):
                angle = _half_angle(tree.corners[t * 3] - q, tree.corners[t * 3 + 1] - q, tree.corners[t * 3 + 2] - q)
                size = wp.abs(angle[0]) + wp.abs(angle[1])
                if size > 0.0:  # else q is one of its corners
                    scale = 1.0 / size
                    re = (product[0] * angle[0] - product[1] * angle[1]) * scale
                    im = (product[0] * angle[1] + product[1] * angle[0]) * scale
                    # The arguments' sum has left (-pi, pi] if both are on one side of zero and it is on the other.
                    if product[1] >= 0.0 and angle[1] >= 0.0 and im < 0.0:
                        turns += 1
                    if product[1] < 0.0 and angle[1] < 0.0 and im >= 0.0:
                        turns -= 1
                    product = wp.vec2(re, im)
            node = next_node(node)
        walking = wp.where(node == 0, 0, 1)
    half = wp.atan2(product[1], product[0]) + float(turns) * 2.0 * wp.pi
    return (dipoles + 2.0 * half) / (4.0 * wp.pi), visits


@wp.kernel
def _wind_points(points: Points, tree: Tree, seen: Seen, winding: Floats) -> None:
    i = wp.tid()
    found, _visits = winding_number(points[i], tree, seen)
    winding[i] = found
