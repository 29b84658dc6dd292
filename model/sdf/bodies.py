"""The bodies of a mesh and which way each of them faces, so that winding numbers add up to their union.

Where two bodies overlap, one of them inside out, their winding numbers would cancel. So every closed body is turned to
face outward, but for a cavity: a body inside another one, wound against it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ..sparse_sdf import Faces, Vertices
from .edges import Edges, connected_parts, number_edges, wind_consistently
from .winding import winding_numbers

_OFFSET = 3e-4  # of the mesh's size, from a face to where its two sides are looked at: what is nearer is the same
_LEAST_SAMPLES, _MOST_SAMPLES, _ALL_SAMPLES = 4, 64, 20_000  # of a body's surface, and of all bodies together
_FLAT = 1e-7  # of a body's area ** 1.5: a smaller volume is rounding
_STRAY = 0.02  # share of a body's samples that may say something else: rounding, or a face that pokes through


class Orientation(NamedTuple):
    """The faces of a mesh as they are to be counted."""

    faces: Faces
    overlapping: Bool[np.ndarray, " num_faces"] | None  # faces of cavities where some overlap: to count once together
    sign: int  # of the winding number in a body


class _Bodies(NamedTuple):
    of_face: Int[np.ndarray, " num_faces"]
    closed: Bool[np.ndarray, " num_bodies"]
    volume: Float[np.ndarray, " num_bodies"]  # six times that enclosed, signed; 0 if flat


def orient_bodies(vertices: Vertices, faces: Faces, edges: Edges, *, device: str) -> Orientation | None:
    """The same faces, turned so that all closed bodies face one way and cavities the other; None where they do.

    Edges are those of the faces, vertices in any unit. As the size of the winding number tells what is inside, not its
    sign, the fewer faces are turned. Open bodies stay as they are.
    """
    if not edges.branching and not edges.patch.any():
        return None  # one body
    single = _without_doubles(faces) if edges.branching else None
    if single is not None:
        faces, edges = wind_consistently(single, len(vertices), device=device)
    bodies = _find_bodies(vertices, faces, edges)
    outward, inward = bodies.closed & (bodies.volume > 0), bodies.closed & (bodies.volume < 0)
    if not outward.any() or not inward.any():
        return None if single is None else Orientation(faces, None, 1)
    cavity, overlap = _find_cavities(vertices, faces, bodies, device=device)
    turned = ((outward & cavity) | (inward & ~cavity))[bodies.of_face]
    decided = (outward | inward)[bodies.of_face]
    sign = 1
    if 2 * turned.sum() > decided.sum():
        turned, sign = decided & ~turned, -1
    if single is None and not turned.any() and not overlap:
        return None
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
    return Orientation(faces, cavity[bodies.of_face] if overlap else None, sign)


def _without_doubles(faces: Faces) -> Int[np.ndarray, "num_kept 3"] | None:
    """The faces without the second of those that are there twice, once reversed, in closed bodies; None if all stay.

    A closed body written with both sides of its wall would count as nothing. A double wall between two bodies, which
    ends at edges where they go on, is none of that.
    """
    _, same, count = np.unique(np.sort(faces, 1), axis=0, return_inverse=True, return_counts=True)
    rows = np.argsort(same, kind="stable")
    rows = rows[count[same[rows]] == 2].reshape(-1, 2)
    turn = faces[rows].argmin(2)[:, :, None] + np.arange(3)
    one, other = np.take_along_axis(faces[rows], turn % 3, 2).transpose(1, 0, 2)
    rows = rows[(one != other).any(1)]
    if not len(rows):
        return None
    once = faces[rows[:, 0]]
    edge, faces_at = number_edges(once)
    owner = np.repeat(np.arange(len(once)), 3)
    part = connected_parts(owner, len(once) + edge, len(once) + len(faces_at))
    ends_there = np.zeros(part.max() + 1, bool)
    ends_there[part[len(once) :][faces_at % 2 == 1]] = True
    second = rows[~ends_there[part[: len(once)]], 1]
    return np.delete(faces, second, 0) if len(second) else None


def _find_bodies(vertices: Vertices, faces: Faces, edges: Edges) -> _Bodies:
    """Faces joined across edges of two; what is then still open, joined across edges of more."""
    names = np.zeros(len(faces), np.int64)
    names[edges.patch] = 1
    body = (np.cumsum(names) - 1)[edges.patch]
    volume = _volumes(vertices[faces], body)
    if not edges.branching and not ((volume > 0).any() and (volume < 0).any()):
        return _Bodies(body, np.ones(len(volume), bool), volume)  # what is closed makes no difference
    closed = _are_closed(faces, body, len(volume))
    if edges.branching and not closed.all():
        body = _join_open(faces, body, closed)
        volume = _volumes(vertices[faces], body)
        closed = _are_closed(faces, body, len(volume))
    return _Bodies(body, closed, volume)


def _volumes(
    corners: Float[np.ndarray, "num_faces 3 3"], body: Int[np.ndarray, " num_faces"]
) -> Float[np.ndarray, " num_bodies"]:
    """Six times the volume of each body, seen from its middle; 0 if it is flat."""
    count = np.bincount(body)
    sums = np.stack([np.bincount(body, corners[:, :, axis].sum(1)) for axis in range(3)], 1)
    a, b, c = (corners - (sums / (3 * count[:, None]))[body][:, None]).transpose(1, 0, 2)
    volume = np.bincount(body, np.einsum("ij,ij->i", a, np.cross(b, c)))
    size = np.bincount(body, np.linalg.norm(np.cross(b - a, c - a), axis=1)) ** 1.5
    return np.where(np.abs(volume) > _FLAT * size, volume, 0.0)


def _are_closed(faces: Faces, body: Int[np.ndarray, " num_faces"], num_bodies: int) -> Bool[np.ndarray, " num_bodies"]:
    """Whether as many edges of a body go one way as the other between any two vertices."""
    pair, _ = number_edges(faces)
    start, end = faces.reshape(-1), np.roll(faces, -1, 1).reshape(-1)
    pair_of_body, own = np.unique(np.repeat(body, 3) * len(pair) + pair, return_inverse=True)
    excess = np.bincount(own, np.sign(end - start))
    closed = np.ones(num_bodies, bool)
    closed[pair_of_body[excess != 0] // len(pair)] = False
    return closed


def _join_open(
    faces: Faces, body: Int[np.ndarray, " num_faces"], closed: Bool[np.ndarray, " num_bodies"]
) -> Int[np.ndarray, " num_faces"]:
    """Bodies that are open by themselves are one where they meet at an edge."""
    rows = np.flatnonzero(~closed[body])
    edge, _ = number_edges(faces[rows])
    owner = np.repeat(body[rows], 3)
    num_bodies = len(closed)
    label = connected_parts(owner, num_bodies + edge, num_bodies + edge.max() + 1)[:num_bodies]
    return np.unique(label[body], return_inverse=True)[1]


def _find_cavities(
    vertices: Vertices, faces: Faces, bodies: _Bodies, *, device: str
) -> tuple[Bool[np.ndarray, " num_bodies"], bool]:
    """Closed bodies that have, all around them, the inside of others that are wound the other way; whether some cross.

    One that has nothing solid around it after all, as it lies in another cavity, is a body again. Where the winding
    number is the same on both sides of a surface, another one lies on it: that says nothing, so that a body which is
    there twice is no cavity in itself.
    """
    points, normals, owner = _sample(vertices[faces], bodies)
    way = np.sign(bodies.volume)[owner]
    away = _OFFSET * np.ptp(vertices[faces.reshape(-1)], axis=0).max() * normals * way[:, None]  # out of the body
    sides = np.concatenate([points + away, points - away])
    num_bodies = len(bodies.closed)

    def share(samples: Bool[np.ndarray, " num_samples"]) -> Float[np.ndarray, " num_bodies"]:
        return np.bincount(owner, samples & telling, num_bodies) / num_telling

    def winding(of: Bool[np.ndarray, " num_bodies"]) -> Float[np.ndarray, "2 num_samples"]:
        return winding_numbers(sides, vertices[faces[of[bodies.of_face]]], device=device).reshape(2, -1)

    inward = bodies.closed & (bodies.volume < 0)
    of_inward, of_others = winding(inward), winding(~inward)
    outside, inside = of_inward + of_others
    telling = np.abs(outside - inside) > 0.5
    num_telling = np.maximum(np.bincount(owner, telling, num_bodies), 1)
    unlike = np.where(way < 0, of_others[0], of_inward[0])
    within = share(unlike * way < -0.5)
    in_void = share((unlike * way < -0.5) & (outside * way > -0.5))
    cavity = bodies.closed & (bodies.volume != 0) & (within >= 1 - _STRAY) & (in_void < 1 - _STRAY)
    return cavity, bool((in_void[cavity] > _STRAY).any())


def _sample(
    corners: Float[np.ndarray, "num_faces 3 3"], bodies: _Bodies
) -> tuple[Float[np.ndarray, "num_samples 3"], Float[np.ndarray, "num_samples 3"], Int[np.ndarray, " num_samples"]]:
    """Points spread evenly over the area of each closed body but flat ones, the normals there, and whose they are."""
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    rows = np.argsort(bodies.of_face, kind="stable")
    rows = rows[(bodies.closed & (bodies.volume != 0))[bodies.of_face[rows]] & (area[rows] > 0)]
    chosen, first = np.unique(bodies.of_face[rows], return_index=True)
    samples = int(np.clip(_ALL_SAMPLES // len(chosen), _LEAST_SAMPLES, _MOST_SAMPLES))
    ends = np.cumsum(area[rows])
    since = np.concatenate([[0.0], ends])[first]
    until = np.concatenate([since[1:], ends[-1:]])
    at = since[:, None] + (np.arange(samples) + 0.5) / samples * (until - since)[:, None]
    last = np.concatenate([first[1:], [len(rows)]]) - 1
    face = rows[np.clip(np.searchsorted(ends, at.reshape(-1)), np.repeat(first, samples), np.repeat(last, samples))]
    # the additive sequence that fills a square most evenly (Roberts 2018), folded into the triangle
    along = np.modf(np.arange(1, len(face) + 1)[:, None] * [0.7548776662466927, 0.5698402909980532])[0]
    along = np.where(along.sum(1, keepdims=True) > 1, 1 - along, along)
    edges = corners[face, 1:] - corners[face, :1]
    points = corners[face, 0] + np.einsum("ij,ijk->ik", along, edges)
    return points, normal[face] / area[face, None], bodies.of_face[face]
