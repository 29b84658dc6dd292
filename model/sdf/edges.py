"""The edges of a triangle mesh: whether faces agree across them, and where the mesh ends.

All edges are sorted on the device, so that those of one pair of vertices are neighbours.
"""

from typing import NamedTuple

import numpy as np
import warp as wp
from jaxtyping import Int

wp.set_module_options({"enable_backward": False})  # no gradients here: half the code to compile


class Edges(NamedTuple):
    mis_wound: bool  # two faces alone at an edge run through it in the same direction, or a face has no area there
    boundary: Int[np.ndarray, "num_edges 2"]  # int64, from and to: with these, as many go either way between vertices


def find_edges(faces: Int[np.ndarray, "num_faces 3"], num_vertices: int, *, device: str) -> Edges:
    """Boundary is where an edge is not run through equally often in both directions: so it is for any triangles."""
    num_edges = 3 * len(faces)
    triangles = wp.array(faces.astype(np.int32), dtype=wp.vec3i, device=device)
    keys = wp.empty(2 * num_edges, dtype=wp.int64, device=device)  # the sort needs as much again
    upward = wp.empty(2 * num_edges, dtype=wp.int32, device=device)
    wp.launch(_name_edges, num_edges, inputs=[triangles, wp.int64(num_vertices), keys, upward], device=device)
    wp.utils.radix_sort_pairs(keys, upward, num_edges)
    excess = wp.zeros(num_edges, dtype=wp.int32, device=device)
    found = wp.zeros(2, dtype=wp.int32, device=device)
    wp.launch(_sum_up, num_edges, inputs=[num_edges, keys, upward, excess, found], device=device)
    mis_wound, open_edges = (bool(number) for number in found.numpy())
    if not open_edges:
        return Edges(mis_wound, np.zeros((0, 2), np.int64))
    sums = excess.numpy()
    at = np.flatnonzero(sums)
    low, high = np.divmod(keys.numpy()[at], num_vertices)
    downward = sums[at] > 0
    edges = np.stack([np.where(downward, high, low), np.where(downward, low, high)], 1)
    return Edges(mis_wound, edges.repeat(np.abs(sums[at]), 0))


@wp.kernel
def _name_edges(
    faces: wp.array[wp.vec3i], num_vertices: wp.int64, keys: wp.array[wp.int64], upward: wp.array[wp.int32]
) -> None:
    """A number for each pair of vertices, and 1 if the edge goes to the higher one, -1 to the lower, 0 to itself."""
    i = wp.tid()
    start = faces[i // 3][i % 3]
    end = faces[i // 3][(i + 1) % 3]
    keys[i] = wp.int64(wp.min(start, end)) * num_vertices + wp.int64(wp.max(start, end))
    upward[i] = wp.where(end > start, 1, wp.where(end < start, -1, 0))


@wp.kernel
def _sum_up(
    num_edges: int,
    keys: wp.array[wp.int64],
    upward: wp.array[wp.int32],
    excess: wp.array[wp.int32],
    found: wp.array[wp.int32],
) -> None:
    """At the first edge of each pair, how many more go up than down."""
    i = wp.tid()
    if i > 0 and keys[i] == keys[i - 1]:
        return
    end = i + 1
    total = upward[i]
    while end < num_edges and keys[end] == keys[i]:
        total += upward[end]
        end += 1
    if end - i == 2 and (wp.abs(total) == 2 or upward[i] == 0):
        found[0] = 1
    if total != 0:
        excess[i] = total
        found[1] = 1
