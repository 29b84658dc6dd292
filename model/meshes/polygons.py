"""Polygons of any number of corners to triangles, concave ones by ear clipping in their own plane."""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import mapbox_earcut
import numpy as np
from jaxtyping import Bool, Float, Int

from .mesh import Faces, Vertices
from .raw import Notes

_Vectors = list[np.ndarray]  # x, y and z of a vector for each polygon

_ROUNDING = 1e-12  # of a polygon's extent squared: areas of triangles below that have no sign


class Polygons(NamedTuple):
    """Polygons as a file lists them."""

    corners: Int[np.ndarray, " num_corners"]  # int64, vertices of all polygons one after another
    sizes: Int[np.ndarray, " num_polygons"]  # int64, corners of each


def triangulate(vertices: Vertices, polygons: Polygons) -> tuple[Faces, Notes]:
    """Triangles that cover each polygon: n - 2 of one with n corners, whose border is the polygon's own.

    They are int64, in the order of the polygons and wound as these are.

    A polygon that is star-shaped about its first corner (or, with four corners, its second), as all convex ones are, is
    cut from there; others by ear clipping in the plane of their mean normal. One that crosses itself in that plane has
    no inside that all readers agree on: it is cut from its first corner as if it did not, and noted. Polygons of fewer
    than three corners are left out and noted.
    """
    corners, sizes = polygons
    if len(sizes) and (sizes == 3).all():
        return corners.reshape(-1, 3), {}
    first = np.cumsum(sizes) - sizes
    pieces, owners, notes = [], [], Counter[str]()
    for size in np.unique(sizes).tolist():
        rows = np.flatnonzero(sizes == size)
        if size < 3:
            notes["points and edges among the faces ignored"] += len(rows)
            continue
        group = corners[first[rows, None] + np.arange(size)]
        triangles, num_crossed = _of_one_size(vertices, group)
        notes["polygons that cross themselves, cut from their first corner"] += num_crossed
        pieces.append(triangles.reshape(-1, 3))
        owners.append(np.repeat(rows, size - 2))
    if not pieces:
        return np.zeros((0, 3), np.int64), notes
    faces, owner = np.concatenate(pieces), np.concatenate(owners)
    return (faces[np.argsort(owner, kind="stable")] if len(pieces) > 1 else faces), notes


def _of_one_size(
    vertices: Vertices, polygons: Int[np.ndarray, "num_polygons size"]
) -> tuple[Int[np.ndarray, "num_polygons size_minus_2 3"], int]:
    """The triangles of polygons of one size, and how many of these cross themselves."""
    size = polygons.shape[1]
    fans = np.stack([np.zeros(size - 2, np.int64), np.arange(1, size - 1), np.arange(2, size)], 1)
    triangles = polygons[:, fans]
    if size == 3:
        return triangles, 0
    stars = _are_stars(vertices, polygons)
    rows = np.flatnonzero(~stars)
    if size == 4 and len(rows):  # a concave one is cut from the corner that points inward, or the one across
        turned = np.roll(polygons[rows], -1, axis=1)
        stars = _are_stars(vertices, turned)
        triangles[rows[stars]] = turned[stars][:, fans]
        rows = rows[~stars]
    if not len(rows):
        return triangles, 0

    finite = np.isfinite(vertices[polygons[rows]]).all(2)
    broken = rows[~finite.all(1)]
    corner = finite[~finite.all(1)].argmin(1)
    triangles[broken] = _pick(polygons[broken], (fans + corner[:, None, None]) % size)  # each has the bad corner
    rows = rows[finite.all(1)]
    points = vertices[polygons[rows]].astype(np.float64)
    points -= points[:, :1]
    crosses = np.cross(points[:, 1:-1], points[:, 2:])
    normals = crosses.sum(1)
    has_plane = (normals != 0).any(1)
    cut, crossed = _clip_ears(points[has_plane], normals[has_plane])
    whole = rows[has_plane][~crossed]
    triangles[whole] = _pick(polygons[whole], cut[~crossed])
    folded = ~has_plane & (crosses != 0).any((1, 2))  # it has no area, but is no line
    return triangles, int(crossed.sum() + folded.sum())


def _pick(
    polygons: Int[np.ndarray, "num_polygons size"], corners: Int[np.ndarray, "num_polygons num_triangles 3"]
) -> Int[np.ndarray, "num_polygons num_triangles 3"]:
    """The vertices at the given corners of each polygon."""
    return np.take_along_axis(polygons[:, None], corners, 2)


def _are_stars(vertices: Vertices, polygons: Int[np.ndarray, "num_polygons size"]) -> Bool[np.ndarray, " num_polygons"]:
    """Whether the triangles from a polygon's first corner cover it, in the plane of its mean normal, without overlap.

    Coordinates go by axis, then corner, then polygon: the polygons are many.
    """
    size = polygons.shape[1]
    with np.errstate(invalid="ignore", over="ignore"):
        corners = [[vertices[polygons[:, i], axis].astype(np.float64) for axis in range(3)] for i in range(size)]
        spokes = [[corner[axis] - corners[0][axis] for axis in range(3)] for corner in corners[1:]]
        crosses = [_cross(a, b) for a, b in pairwise(spokes)]
        normal = [np.sum([cross[axis] for cross in crosses], axis=0) for axis in range(3)]  # twice the area (Newell)
        upward = [_dot(cross, normal) for cross in crosses]
        star = np.maximum.reduce(upward) > 0
        for part in upward:
            star &= part >= 0
        if size > 4:  # many corners may wind around the first one more than once
            length = np.sqrt(_dot(normal, normal))
            dots = (_dot(a, b) * length for a, b in pairwise(spokes))
            turns = np.sum([np.arctan2(part, dot) for part, dot in zip(upward, dots, strict=True)], axis=0)
            star &= turns < 2 * np.pi - 1e-6
    return star


def _cross(a: _Vectors, b: _Vectors) -> _Vectors:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _dot(a: _Vectors, b: _Vectors) -> Float[np.ndarray, " num_polygons"]:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _clip_ears(
    points: Float[np.ndarray, "num_polygons size 3"], normals: Float[np.ndarray, "num_polygons 3"]
) -> tuple[Int[np.ndarray, "num_polygons size_minus_2 3"], Bool[np.ndarray, " num_polygons"]]:
    """Triangles as corners' numbers, wound as the polygons, and whether a polygon crosses itself in its plane."""
    num, size = points.shape[:2]
    plane = _in_plane(points, normals)
    triangles = np.zeros((num, size - 2, 3), np.int64)
    if not num:
        return triangles, np.zeros(0, bool)
    crossed = np.ones(num, bool)
    ring = np.array([size], np.uint32)
    for i in range(num):
        cut = mapbox_earcut.triangulate_float64(plane[i], ring).reshape(-1, 3).astype(np.int64)
        whole = _with_border(cut, size)
        if whole is not None:
            triangles[i], crossed[i] = whole, False
    a, b, c = (np.take_along_axis(plane, triangles[..., k, None], 1) for k in range(3))
    u, v = b - a, c - a
    areas = u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0]  # twice, positive where wound as the polygon
    extent = np.ptp(plane, axis=1).max(1)
    crossed |= (areas < -_ROUNDING * extent[:, None] ** 2).any(1)
    return triangles, crossed


def _in_plane(
    points: Float[np.ndarray, "num_polygons size 3"], normals: Float[np.ndarray, "num_polygons 3"]
) -> Float[np.ndarray, "num_polygons size 2"]:
    """Coordinates in the plane of each polygon, in which it runs counterclockwise."""
    unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    least = np.abs(unit).argmin(1)
    right = np.cross(np.eye(3)[least], unit)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    up = np.cross(unit, right)
    return np.ascontiguousarray(np.einsum("pkc,pac->pka", points, np.stack([right, up], 1)))


def _with_border(triangles: Int[np.ndarray, "num_cut 3"], size: int) -> Int[np.ndarray, "size_minus_2 3"] | None:
    """Counterclockwise triangles whose border is the ring 0, 1, ..., size - 1; None where they have another border.

    Ear clipping leaves out corners on a straight edge. A neighbour may have them, so they come back as triangles
    without area: else there would be a slit between the two.
    """
    if len(triangles) > size - 2:
        return None
    edges = {(a, b) for t in triangles.tolist() for a, b in ((t[0], t[1]), (t[1], t[2]), (t[2], t[0]))}
    if len(edges) != 3 * len(triangles):
        return None
    border = [(a, b) for a, b in edges if (b, a) not in edges]
    following = dict(border)
    if len(following) != len(border) or len(border) != size - (size - 2 - len(triangles)):
        return None
    added = []
    for a, b in border:
        between = [(a + step) % size for step in range(1, (b - a) % size)]
        if any(corner in following for corner in between):
            return None
        added += [(a, corner, after) for corner, after in pairwise([*between, b])]
    return np.concatenate([triangles, np.array(added, np.int64).reshape(-1, 3)])
