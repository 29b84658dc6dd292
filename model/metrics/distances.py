"""Random points of surfaces, and the distances between two sets of them. Lengths are in units of the [-1, 1] cube."""

from typing import NamedTuple

import numpy as np
import trimesh
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from ..errors import InputError
from ..meshes import Mesh
from ..sdf import Surface

AnyMesh = Mesh | Surface | trimesh.Trimesh | tuple[np.ndarray, np.ndarray]  # the tuple holds vertices and faces


class SurfacePoints(NamedTuple):
    points: Float[np.ndarray, "num_points 3"]
    normals: Float[np.ndarray, "num_points 3"]  # unit, by the winding of the face


class Nearest(NamedTuple):
    distance: Float[np.ndarray, " num_points"]
    row: Int[np.ndarray, " num_points"]  # of the point that is nearest


class FScore(NamedTuple):
    precision: float  # share of predicted points nearer to the truth than the threshold
    recall: float  # share of true points nearer to the prediction than the threshold

    @property
    def fscore(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def checked_mesh(mesh: AnyMesh, name: str) -> Mesh:
    """The mesh with float64 vertices and int64 faces.

    Raises InputError for coordinates that are not finite, faces that are no triangles or point past the vertices.
    """
    vertices, faces = map(np.asarray, mesh if isinstance(mesh, tuple) else (mesh.vertices, mesh.faces))
    for array in (vertices, faces):
        if array.size and array.shape[1:] != (3,):
            raise InputError(
                f"{name} has vertices {list(vertices.shape)} and faces {list(faces.shape)}; expected [N, 3] and "
                "[M, 3]; make triangles of it"
            )
    vertices, faces = vertices.astype(np.float64).reshape(-1, 3), faces.astype(np.int64).reshape(-1, 3)
    if not np.isfinite(vertices).all():
        bad = int((~np.isfinite(vertices).all(1)).sum())
        raise InputError(f"{name} has {bad} vertices that are not finite, expected none; check what produced it")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(
            f"{name} has faces that name vertices {faces.min()} to {faces.max()}, expected 0 to {len(vertices) - 1}; "
            "check what produced it"
        )
    return Mesh(vertices, faces)


def has_surface(mesh: Mesh) -> bool:
    """Whether any face has an area."""
    return bool(_scaled_normals(mesh.vertices[mesh.faces]).any())


def sample_surface(mesh: Mesh, num_points: int, rng: np.random.Generator) -> SurfacePoints:
    """Uniform points on a surface: a face by its share of the area, then a point in it (Osada et al. 2002, eq. 1).

    Points come ordered by face, which makes neighbour queries several times faster.
    """
    corners = mesh.vertices[mesh.faces]
    scaled_normals = _scaled_normals(corners)
    areas = np.linalg.norm(scaled_normals, axis=1)
    upto = np.cumsum(areas)
    face = np.searchsorted(upto, np.sort(rng.random(num_points)) * upto[-1], side="right")
    face = np.minimum(face, np.flatnonzero(areas)[-1])  # rounding must not step onto a trailing face without area
    root, along = np.sqrt(rng.random((num_points, 1))), rng.random((num_points, 1))
    a, b, c = corners[face].swapaxes(0, 1)
    points = (1 - root) * a + root * (1 - along) * b + root * along * c
    return SurfacePoints(points, scaled_normals[face] / areas[face, None])


def nearest(tree: cKDTree, points: Float[np.ndarray, "num_points 3"]) -> Nearest:
    """For each point the distance to the nearest of the tree's points, and its row."""
    return Nearest(*(np.asarray(found) for found in tree.query(points, workers=-1)))


def tree_of(points: Float[np.ndarray, "num_points 3"]) -> cKDTree:
    """A tree to ask `nearest` with."""
    return cKDTree(points, balanced_tree=True)  # without balance, points in a few small planes take minutes to ask


def _scaled_normals(corners: Float[np.ndarray, "num_faces 3 3"]) -> Float[np.ndarray, "num_faces 3"]:
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
