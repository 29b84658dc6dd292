"""Inside or outside, by the generalised winding number: the only criterion that also holds on open meshes.

Its value is found the short way. Caps over all holes make the mesh a closed one, whose winding number is a whole number
that counting crossings along grid lines gives for all voxels at once; the caps' own winding number is then taken off
again. The costly solid angles are so needed for the caps only, and on a closed mesh not at all.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from model.sdf.crossings import count_crossings
from model.sdf.winding import brick_winding_numbers

# Every query is this far (in voxels) from its voxel's centre: centres often lie exactly on faces, edges and caps.
_NUDGE = np.array([1.37e-5, 2.11e-5, 1.73e-5])


def brick_insides(
    vertices: Float[np.ndarray, "num_vertices 3"],
    faces: Int[np.ndarray, "num_faces 3"],
    brick_coords: Int[np.ndarray, "num_bricks 3"],
    *,
    resolution: int,
    device: str,
) -> Bool[np.ndarray, "num_bricks 8 8 8"]:
    """Whether |w| > 0.5 at every voxel of the given bricks; vertices in voxels. |w| makes inside-out meshes right."""
    caps = cap_holes(vertices, faces)
    winding = None
    if len(caps) < len(faces):
        closed = np.concatenate([vertices[faces], caps])
        winding = count_crossings(closed, brick_coords, resolution=resolution, nudge=_NUDGE, device=device)
        if winding is not None and len(caps):
            winding = winding - brick_winding_numbers(caps, brick_coords, nudge=_NUDGE, device=device)
    if winding is None:
        winding = brick_winding_numbers(vertices[faces], brick_coords, nudge=_NUDGE, device=device)
    return np.abs(winding) > 0.5


def cap_holes(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> Float[np.ndarray, "num_caps 3 3"]:
    """Triangles that make the mesh closed: each connected part of its boundary, joined to the part's mean vertex.

    Boundary is where an edge is not run through equally often in both directions, so that this holds for any triangles.
    """
    start, end = faces.reshape(-1), np.roll(faces, -1, 1).reshape(-1)
    keys, edge = np.unique(np.minimum(start, end) * len(vertices) + np.maximum(start, end), return_inverse=True)
    excess = np.bincount(edge, weights=np.sign(end - start)).astype(np.int64)
    low, high = np.divmod(keys, len(vertices))
    times = np.abs(excess)
    from_, to = np.where(excess > 0, high, low).repeat(times), np.where(excess > 0, low, high).repeat(times)
    if not len(from_):
        return np.zeros((0, 3, 3))
    graph = coo_matrix((np.ones(len(from_), bool), (from_, to)), shape=(len(vertices), len(vertices)))
    part = connected_components(graph, directed=False)[1][from_]
    sums = np.stack([np.bincount(part, weights=vertices[from_, axis]) for axis in range(3)], 1)
    apex = sums[part] / np.bincount(part)[part, None]
    return np.stack([vertices[from_], vertices[to], apex], 1)


def orient_consistently(faces: Int[np.ndarray, "num_faces 3"]) -> Int[np.ndarray, "num_faces 3"]:
    """Faces flipped so that neighbours across every two-face edge agree; per patch, the fewer faces are flipped.

    Edges of one or of more than two faces join nothing. A patch that can't be oriented (a Moebius band) stays as it is.
    """
    num_faces = len(faces)
    ends = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)  # row 3 f + e: edge e of face f
    keys = ends.min(1) * (faces.max() + 1) + ends.max(1)
    _, edge, count = np.unique(keys, return_inverse=True, return_counts=True)
    rows = np.argsort(edge, kind="stable")
    rows = rows[count[edge[rows]] == 2].reshape(-1, 2)
    opposed = ends[rows[:, 0], 0] != ends[rows[:, 1], 0]  # run through in both directions, as it should be
    if opposed.all():
        return faces

    # Nodes f and f + num_faces are face f as it is and flipped; an edge joins the pairs that agree.
    left, right = rows[:, 0] // 3, rows[:, 1] // 3
    other = right + np.where(opposed, 0, num_faces)
    i = np.concatenate([left, (left + num_faces)])
    j = np.concatenate([other, (other + num_faces) % (2 * num_faces)])
    graph = coo_matrix((np.ones(len(i), bool), (i, j)), shape=(2 * num_faces, 2 * num_faces))
    label = connected_components(graph, directed=False)[1]
    kept, flipped = label[:num_faces], label[num_faces:]
    votes = np.bincount(kept, minlength=label.max() + 1)
    flip = votes[flipped] > votes[kept]  # the choice of the fewer flips; a Moebius band has kept == flipped
    tie = (votes[flipped] == votes[kept]) & (flipped < kept)
    return np.where((flip | tie)[:, None], faces[:, ::-1], faces)
