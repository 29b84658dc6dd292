"""Exact distance and side of points relative to a triangle mesh, by warp-lang on the CPU, for evaluation."""

from threading import Lock
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int

from ..warp import QUICK_TO_COMPILE, wp

wp.set_module_options(QUICK_TO_COMPILE)

_FAR = 10.0  # farther than any two points of the cube
_ONE_AT_A_TIME = Lock()  # comparisons may run in threads; Warp does not say that its launches may


@no_type_check
@wp.kernel
def _distances(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), distance: wp.array(dtype=wp.float32)) -> None:
    i = wp.tid()
    query = wp.mesh_query_point_no_sign(mesh, points[i], _FAR)
    distance[i] = wp.length(points[i] - wp.mesh_eval_position(mesh, query.face, query.u, query.v))


@no_type_check
@wp.kernel
def _sides(mesh: wp.uint64, points: wp.array(dtype=wp.vec3), side: wp.array(dtype=wp.float32)) -> None:
    i = wp.tid()
    side[i] = wp.mesh_query_point_sign_winding_number(mesh, points[i], _FAR).sign


class SurfaceQuery:
    """Distance to a surface and, where it is closed, which side of it a point is on. At least one face is needed."""

    def __init__(self, vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]) -> None:
        vertices = np.asarray(vertices, np.float32)
        faces = np.asarray(faces, np.int32)
        if _signed_volume(vertices, faces) < 0:
            faces = faces[:, ::-1]  # inside out: the winding number would be -1 inside
        used = vertices[faces.ravel()]
        self.low, self.high = used.min(0), used.max(0)  # corners of the bounding box
        with _ONE_AT_A_TIME:
            self._mesh = wp.Mesh(
                points=wp.array(vertices, dtype=wp.vec3, device="cpu"),
                indices=wp.array(np.ascontiguousarray(faces).ravel(), dtype=wp.int32, device="cpu"),
                support_winding_number=True,
            )

    def distance(self, points: Float[np.ndarray, "num_points 3"]) -> Float[np.ndarray, " num_points"]:
        return self._launch(_distances, points)

    def inside(self, points: Float[np.ndarray, "num_points 3"]) -> Bool[np.ndarray, " num_points"]:
        """By the generalised winding number (Jacobson et al. 2013): overlapping parts count as their union."""
        inside = np.zeros(len(points), bool)
        rows = np.flatnonzero(((points > self.low) & (points < self.high)).all(1))
        inside[rows] = self._launch(_sides, points[rows]) < 0
        return inside

    def _launch(self, kernel: wp.Kernel, points: Float[np.ndarray, "num_points 3"]) -> Float[np.ndarray, " num_points"]:
        with _ONE_AT_A_TIME:
            out = wp.empty(len(points), dtype=wp.float32, device="cpu")
            if len(points):
                inputs = [self._mesh.id, wp.array(points.astype(np.float32), dtype=wp.vec3, device="cpu")]
                wp.launch(kernel, dim=len(points), inputs=inputs, outputs=[out], device="cpu")
            return out.numpy()


def _signed_volume(vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]) -> float:
    a, b, c = vertices.astype(np.float64)[faces].swapaxes(0, 1)
    return float((a * np.cross(b, c)).sum() / 6)
