"""The generalised winding number of a triangle soup: the sum of its solid angles over 4 pi (Jacobson et al. 2013).

Far groups of triangles count together, as a dipole and the first moment about it (Barill et al. 2018), as soon as a
bound on the error of that says that they may.
"""

import numpy as np
from jaxtyping import Float

from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Floats, Points, Seen
from .tree import Tree, next_node, seen_from, triangle_tree

wp.set_module_options(QUICK_TO_COMPILE)

# Largest error that one group may add, as a winding number. Errors have either sign; tests hold their sum below 0.01.
GROUP_ERROR = 5e-3


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
    radius, area, _ = tree.shape.numpy().T
    return seen_from(tree, (3 * area * radius**2 / (4 * np.pi * group_error)) ** 0.25)


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
