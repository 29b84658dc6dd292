"""The edges of a triangle mesh: whether faces agree across them, which faces they join, and where the mesh ends.

All edges are sorted on the device, so that those of one pair of vertices are neighbours.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..sparse_sdf import Faces
from ..warp import QUICK_TO_COMPILE, wp
from .arrays import Cells, Ints

wp.set_module_options(QUICK_TO_COMPILE)


class Edges(NamedTuple):
    mis_wound: bool  # two faces alone at an edge run through it in the same direction, or a face has no area there
    boundary: Int[np.ndarray, "num_edges 2"]  # int64, from and to: with these, as many go either way between vertices
    branching: bool  # more than two faces meet at an edge
    patch: Int[np.ndarray, " num_faces"]  # int32, the lowest face among those joined to it across edges of two faces


def find_edges(faces: Faces, num_vertices: int, *, device: str) -> Edges:
    """Boundary is where an edge is not run through equally often in both directions: so it is for any triangles."""
    num_edges = 3 * len(faces)
    triangles = wp.array(faces.astype(np.int32), dtype=wp.vec3i, device=device)
    keys = wp.empty(2 * num_edges, dtype=wp.int64, device=device)  # the sort needs as much again
    edges = wp.empty(2 * num_edges, dtype=wp.int32, device=device)
    wp.launch(_name_edges, num_edges, inputs=[triangles, wp.int64(num_vertices), keys, edges], device=device)
    wp.utils.radix_sort_pairs(keys, edges, num_edges)
    excess = wp.zeros(num_edges, dtype=wp.int32, device=device)
    found = wp.zeros(3, dtype=wp.int32, device=device)
    patch = wp.array(np.arange(len(faces), dtype=np.int32), dtype=wp.int32, device=device)
    wp.launch(_sum_up, num_edges, inputs=[num_edges, triangles, keys, edges, excess, found, patch], device=device)
    wp.launch(_name_patches, len(faces), inputs=[patch], device=device)
    mis_wound, open_edges, branching = (bool(number) for number in found.numpy())
    if not open_edges:
        return Edges(mis_wound, np.zeros((0, 2), np.int64), branching, patch.numpy())
    sums = excess.numpy()
    at = np.flatnonzero(sums)
    low, high = np.divmod(keys.numpy()[at], num_vertices)
    downward = sums[at] > 0
    boundary = np.stack([np.where(downward, high, low), np.where(downward, low, high)], 1)
    return Edges(mis_wound, boundary.repeat(np.abs(sums[at]), 0), branching, patch.numpy())


def number_edges(faces: Faces) -> tuple[Int[np.ndarray, " three_a_face"], Int[np.ndarray, " num_pairs"]]:
    """For each edge of each face, on the host, the number of its pair of vertices, and how many edges each pair has."""
    start, end = faces.reshape(-1), np.roll(faces, -1, 1).reshape(-1)
    keys = np.minimum(start, end) * (faces.max() + 1) + np.maximum(start, end)
    _, number, count = np.unique(keys, return_inverse=True, return_counts=True)
    return number, count


def connected_parts(
    one: Int[np.ndarray, " num_links"], other: Int[np.ndarray, " num_links"], num_nodes: int
) -> Int[np.ndarray, " num_nodes"]:
    """For each node of a graph, on the host, the number of the part that it is in; links join one node to another."""
    graph = coo_matrix((np.ones(len(one), bool), (one, other)), shape=(num_nodes, num_nodes))
    return connected_components(graph, directed=False)[1]


def orient_consistently(faces: Faces) -> Faces:
    """Faces flipped so that neighbours across every two-face edge agree; per patch, the fewer faces are flipped.

    Edges of one or of more than two faces join nothing. A patch that can't be oriented (a Moebius band) stays as it is.
    """
    num_faces = len(faces)
    edge, count = number_edges(faces)  # edge e of face f is in row 3 f + e
    start = faces.reshape(-1)
    rows = np.argsort(edge, kind="stable")
    rows = rows[count[edge[rows]] == 2].reshape(-1, 2)
    opposed = start[rows[:, 0]] != start[rows[:, 1]]  # run through in both directions, as it should be
    if opposed.all():
        return faces

    # Nodes f and f + num_faces are face f as it is and flipped; an edge joins the pairs that agree.
    left, right = rows[:, 0] // 3, rows[:, 1] // 3
    other = right + np.where(opposed, 0, num_faces)
    i = np.concatenate([left, (left + num_faces)])
    j = np.concatenate([other, (other + num_faces) % (2 * num_faces)])
    label = connected_parts(i, j, 2 * num_faces)
    kept, flipped = label[:num_faces], label[num_faces:]
    votes = np.bincount(kept, minlength=label.max() + 1)
    flip = votes[flipped] > votes[kept]  # the choice of the fewer flips; a Moebius band has kept == flipped
    tie = (votes[flipped] == votes[kept]) & (flipped < kept)
    return np.where((flip | tie)[:, None], faces[:, ::-1], faces)


def wind_consistently(faces: Faces, num_vertices: int, *, device: str) -> tuple[Faces, Edges]:
    """Faces as orient_consistently leaves them, and their edges."""
    edges = find_edges(faces, num_vertices, device=device)
    if edges.mis_wound:
        faces = orient_consistently(faces)
        edges = find_edges(faces, num_vertices, device=device)
    return faces, edges


@wp.kernel
def _name_edges(faces: Cells, num_vertices: wp.int64, keys: wp.array[wp.int64], edges: Ints) -> None:
    """A number for each pair of vertices, and that of the edge: 3 times the face, plus its place in the face."""
    i = wp.tid()
    start = faces[i // 3][i % 3]
    end = faces[i // 3][(i + 1) % 3]
    keys[i] = wp.int64(wp.min(start, end)) * num_vertices + wp.int64(wp.max(start, end))
    edges[i] = i


@wp.func
def _upward(faces: Cells, edge: int) -> int:
    """1 if the edge goes to the higher vertex, -1 if to the lower, 0 if to itself."""
    start = faces[edge // 3][edge % 3]
    end = faces[edge // 3][(edge % 3 + 1) % 3]
    return wp.where(end > start, 1, wp.where(end < start, -1, 0))


@wp.func
def _root(patch: Ints, face: int) -> int:
    here = face
    while patch[here] != here:
        patch[here] = patch[patch[here]]  # halves the way for those who come after
        here = patch[here]
    return here


@wp.func
def _unite(patch: Ints, one: int, other: int) -> None:
    """Joins two trees of faces at their roots; the lower one is the new root. Safe for threads in parallel."""
    a = one
    b = other
    joining = int(1)
    while joining == 1:
        a = _root(patch, a)
        b = _root(patch, b)
        high = wp.max(a, b)
        low = wp.min(a, b)
        if high == low:
            joining = 0
        else:
            before = wp.atomic_min(patch, high, low)
            if before == high:
                joining = 0
            a = before  # another thread was there first: what it joined is still to be joined to ours
            b = low


@wp.kernel
def _name_patches(patch: Ints) -> None:
    face = wp.tid()
    patch[face] = _root(patch, face)


@wp.kernel
def _sum_up(
    num_edges: int, faces: Cells, keys: wp.array[wp.int64], edges: Ints, excess: Ints, found: Ints, patch: Ints
) -> None:
    """At the first edge of each pair, how many more go up than down."""
    i = wp.tid()
    if i > 0 and keys[i] == keys[i - 1]:
        return
    end = i + 1
    first = _upward(faces, edges[i])
    total = first
    while end < num_edges and keys[end] == keys[i]:
        total += _upward(faces, edges[end])
        end += 1
    if end - i == 2:
        if wp.abs(total) == 2 or first == 0:
            found[0] = 1
        _unite(patch, edges[i] // 3, edges[i + 1] // 3)
    if total != 0:
        excess[i] = total
        found[1] = 1
    if end - i > 2:
        found[2] = 1
