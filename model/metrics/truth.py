"""How far a predicted surface is from the true one.

Everything is measured in the [-1, 1] cube that the truth was normalised into; the prediction is never aligned or
rescaled. Surfaces are compared through area-weighted random points, with independent streams for both sides, so even
a perfect prediction has a distance above 0: `compare(truth, truth, ...)` is that floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from ..errors import InputError
from ..meshes import Mesh
from .distances import AnyMesh, FScore, checked_mesh, has_surface, nearest, sample_surface, tree_of
from .iou import IOU_NOISE, Field, FieldSolid, Ious, TrueSolid
from .signed_distance import SurfaceQuery

FSCORE_THRESHOLDS = (0.001, 0.005, 0.01, 0.02)  # distances in the cube
SPURIOUS_VOXELS = 2.0  # predicted surface farther than this from the truth is spurious
IOU_POINTS_SHARE = 0.1  # winding numbers cost more than neighbours, and IoU needs fewer points
CUBE_DIAGONAL = 2.0 * 3.0**0.5

_TRUTH_STREAM, _PRED_STREAM, _NEAR_STREAM, _BOX_STREAM = range(4)  # of random numbers


@dataclass(frozen=True)
class GeometryMetrics:
    """One predicted mesh against the truth. Lengths are in units of the [-1, 1] cube.

    A prediction without any surface has `failed` set and the worst value of every figure (distances: the diagonal of
    the cube), so that it makes every mean worse instead of falling out of it.
    """

    failed: bool
    accuracy_l1: float  # mean distance of predicted points to the truth
    completeness_l1: float  # mean distance of true points to the prediction
    accuracy_l2: float  # the same of squared distances
    completeness_l2: float
    fscores: dict[float, FScore]  # by threshold
    normal_consistency: float  # mean cosine between the normals of nearest points, both ways; -1 is inside out
    normal_consistency_absolute: float  # the same without sign, for truths whose winding means nothing
    spurious_area: float | None  # share of predicted area > 2 voxels from the truth; None without a voxel size
    volume_iou: float | None  # of the solids; None where either is not known
    surface_iou: float | None  # the same near the true surface

    @property
    def cd_l1(self) -> float:
        """Chamfer distance, half the sum of both mean distances."""
        return (self.accuracy_l1 + self.completeness_l1) / 2

    @property
    def cd_l2(self) -> float:
        """Chamfer distance, sum of both mean squared distances."""
        return self.accuracy_l2 + self.completeness_l2

    def as_row(self) -> dict[str, float | bool | None]:
        """Flat, for a table: fscores become fscore_0.01, precision_0.01, recall_0.01."""
        row: dict[str, float | bool | None] = {"failed": self.failed, "cd_l1": self.cd_l1, "cd_l2": self.cd_l2}
        for name, value in vars(self).items():
            if name != "fscores":
                row[name] = value
                continue
            for threshold, score in self.fscores.items():
                row[f"fscore_{threshold:g}"] = score.fscore
                row[f"precision_{threshold:g}"] = score.precision
                row[f"recall_{threshold:g}"] = score.recall
        return row


def compare(
    pred: AnyMesh,
    truth: AnyMesh,
    *,
    num_points: int,
    seed: int,
    thresholds: Sequence[float] = FSCORE_THRESHOLDS,
    voxel_size: float | None = None,
    field: Field | None = None,
    with_iou: bool = True,
) -> GeometryMetrics:
    """Geometry metrics of a prediction, both meshes in the truth's [-1, 1] cube.

    `voxel_size` (2 / resolution) is needed for the spurious area only. What is inside the prediction is what its field
    says; without one its winding number does, where both surfaces are closed, and IoUs are None where one is not.
    Raises InputError where the truth has no surface or either mesh has vertices that are not finite or faces that
    point past its vertices.
    """
    return Truth(truth, num_points=num_points, seed=seed).compare(
        pred, thresholds=thresholds, voxel_size=voxel_size, field=field, with_iou=with_iou
    )


class Truth:
    """A true surface with its samples and search trees, made once and compared with several predictions."""

    def __init__(self, mesh: AnyMesh, *, num_points: int, seed: int) -> None:
        self.mesh = checked_mesh(mesh, "the true mesh")
        if not has_surface(self.mesh):
            raise InputError(
                "the true mesh has no face with an area, expected a surface; remove the mesh and revoxelize"
            )
        self.num_points = num_points
        self.seed = seed
        self.samples = sample_surface(self.mesh, num_points, np.random.default_rng([seed, _TRUTH_STREAM]))
        self.tree = tree_of(self.samples.points)

    @cached_property
    def query(self) -> SurfaceQuery:
        return SurfaceQuery(self.mesh.vertices, self.mesh.faces)

    def compare(
        self,
        prediction: AnyMesh,
        *,
        thresholds: Sequence[float],
        voxel_size: float | None,
        field: Field | None = None,
        with_iou: bool = True,
    ) -> GeometryMetrics:
        """As the function of that name."""
        pred = checked_mesh(prediction, "the predicted mesh")
        if not has_surface(pred):
            has_iou = with_iou and (self.mesh.is_closed or field is not None)
            return _failure(thresholds, has_iou=has_iou, has_voxel_size=voxel_size is not None)
        samples = sample_surface(pred, self.num_points, np.random.default_rng([self.seed, _PRED_STREAM]))
        to_truth, nearest_truth = nearest(self.tree, samples.points)
        to_pred, nearest_pred = nearest(tree_of(samples.points), self.samples.points)
        there = samples.normals * self.samples.normals[nearest_truth]
        back = self.samples.normals * samples.normals[nearest_pred]
        cosines = np.stack([there.sum(1), back.sum(1)])
        ious = self._ious(pred, field) if with_iou else Ious(None, None)
        return GeometryMetrics(
            failed=False,
            accuracy_l1=float(to_truth.mean()),
            completeness_l1=float(to_pred.mean()),
            accuracy_l2=float((to_truth**2).mean()),
            completeness_l2=float((to_pred**2).mean()),
            fscores={t: FScore(float((to_truth < t).mean()), float((to_pred < t).mean())) for t in thresholds},
            normal_consistency=float(cosines.mean()),
            normal_consistency_absolute=float(np.abs(cosines).mean()),
            spurious_area=None if voxel_size is None else self._spurious(samples.points, to_truth, voxel_size),
            volume_iou=ious.volume,
            surface_iou=ious.surface,
        )

    def _spurious(
        self, points: Float[np.ndarray, "num_points 3"], to_samples: Float[np.ndarray, " num_points"], voxel_size: float
    ) -> float:
        """Samples are no nearer than the surface, so only points far from all samples need the exact distance."""
        limit = SPURIOUS_VOXELS * voxel_size
        far = points[to_samples > limit]
        return float((self.query.distance(far) > limit).sum() / len(points)) if len(far) else 0.0

    @cached_property
    def solid(self) -> TrueSolid:
        """By the winding number, which says what is inside an open surface as well."""
        rng = np.random.default_rng([self.seed, _NEAR_STREAM])
        points = sample_surface(self.mesh, max(1, round(self.num_points * IOU_POINTS_SHARE)), rng).points
        near = points + rng.normal(size=points.shape) * rng.uniform(*IOU_NOISE, size=(len(points), 1))
        return TrueSolid(self.query, near, seed=[self.seed, _BOX_STREAM])

    def _ious(self, pred: Mesh, field: Field | None) -> Ious:
        if field is not None:
            return self.solid.ious(FieldSolid(field))
        if not (self.mesh.is_closed and pred.is_closed):
            return Ious(None, None)
        return self.solid.ious(SurfaceQuery(pred.vertices, pred.faces))


def _failure(thresholds: Sequence[float], *, has_iou: bool, has_voxel_size: bool) -> GeometryMetrics:
    iou = 0.0 if has_iou else None
    return GeometryMetrics(
        failed=True,
        accuracy_l1=CUBE_DIAGONAL,
        completeness_l1=CUBE_DIAGONAL,
        accuracy_l2=CUBE_DIAGONAL**2,
        completeness_l2=CUBE_DIAGONAL**2,
        fscores={t: FScore(0.0, 0.0) for t in thresholds},
        normal_consistency=-1.0,
        normal_consistency_absolute=0.0,
        spurious_area=1.0 if has_voxel_size else None,
        volume_iou=iou,
        surface_iou=iou,
    )
