"""How far a predicted surface, or a predicted distance field, is from the truth.

Everything is measured in the [-1, 1] cube that the truth was normalised into; the prediction is never aligned or
rescaled. Surfaces are compared through area-weighted random points, with independent streams for both sides, so even
a perfect prediction has a distance above 0: `compare(truth, truth, ...)` is that floor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

from ..errors import InputError
from .signed_distance import SurfaceQuery, is_closed

FSCORE_THRESHOLDS = (0.001, 0.005, 0.01, 0.02)  # distances in the cube
SPURIOUS_VOXELS = 2.0  # predicted surface farther than this from the truth is spurious
IOU_NOISE = (0.01, 0.05)  # range of the standard deviation of the points around the surface
IOU_POINTS_SHARE = 0.1  # winding numbers cost more than neighbours, and IoU needs fewer points
BAND_EDGE = 0.9  # voxel sets are those nearer than this: a network's far voxels lie around 1, on either side of it
CUBE_DIAGONAL = 2.0 * 3.0**0.5
NUM_RESAMPLES = 2000

_TRUTH_STREAM, _PRED_STREAM, _NEAR_STREAM, _BOX_STREAM, _BOOTSTRAP_STREAM = range(5)


@runtime_checkable
class Mesh(Protocol):
    """Anything with vertices and faces: trimesh.Trimesh, the meshes of model.sdf, TriangleMesh."""

    @property
    def vertices(self) -> Float[np.ndarray, "num_vertices 3"]: ...
    @property
    def faces(self) -> Int[np.ndarray, "num_faces 3"]: ...


AnyMesh = Mesh | tuple[np.ndarray, np.ndarray]  # the tuple holds vertices and faces


class TriangleMesh(NamedTuple):
    vertices: Float[np.ndarray, "num_vertices 3"]
    faces: Int[np.ndarray, "num_faces 3"]


class SurfacePoints(NamedTuple):
    points: Float[np.ndarray, "num_points 3"]
    normals: Float[np.ndarray, "num_points 3"]  # unit, by the winding of the face


class FScore(NamedTuple):
    precision: float  # share of predicted points nearer to the truth than the threshold
    recall: float  # share of true points nearer to the prediction than the threshold

    @property
    def fscore(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


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
    volume_iou: float | None  # None unless both surfaces are closed
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
        for name in ("accuracy_l1", "completeness_l1", "accuracy_l2", "completeness_l2"):
            row[name] = getattr(self, name)
        for threshold, score in self.fscores.items():
            row[f"fscore_{threshold:g}"] = score.fscore
            row[f"precision_{threshold:g}"] = score.precision
            row[f"recall_{threshold:g}"] = score.recall
        for name in ("normal_consistency", "normal_consistency_absolute", "spurious_area", "volume_iou", "surface_iou"):
            row[name] = getattr(self, name)
        return row


def compare(
    pred: AnyMesh,
    truth: AnyMesh,
    *,
    num_points: int,
    seed: int,
    thresholds: Sequence[float] = FSCORE_THRESHOLDS,
    voxel_size: float | None = None,
    with_iou: bool = True,
) -> GeometryMetrics:
    """Geometry metrics of a prediction, both meshes in the truth's [-1, 1] cube.

    `voxel_size` (2 / resolution) is needed for the spurious area only. Raises InputError where the truth has no surface
    or either mesh has vertices that are not finite or faces that point past its vertices.
    """
    return Truth(truth, num_points=num_points, seed=seed).compare(
        pred, thresholds=thresholds, voxel_size=voxel_size, with_iou=with_iou
    )


class Truth:
    """A true surface with its samples and search trees, made once and compared with several predictions."""

    def __init__(self, mesh: AnyMesh, *, num_points: int, seed: int) -> None:
        self.mesh = checked(mesh, "the true mesh")
        if not has_surface(self.mesh):
            raise InputError(
                "the true mesh has no face with an area, expected a surface; remove the mesh and revoxelize"
            )
        self.num_points = num_points
        self.seed = seed
        self.samples = sample_surface(self.mesh, num_points, np.random.default_rng([seed, _TRUTH_STREAM]))
        self.tree = _tree(self.samples.points)

    @cached_property
    def query(self) -> SurfaceQuery:
        return SurfaceQuery(self.mesh.vertices, self.mesh.faces)

    def compare(
        self, pred: AnyMesh, *, thresholds: Sequence[float], voxel_size: float | None, with_iou: bool
    ) -> GeometryMetrics:
        pred = checked(pred, "the predicted mesh")
        if not has_surface(pred):
            return _failure(thresholds, closed=self.is_closed and with_iou, has_voxel_size=voxel_size is not None)
        samples = sample_surface(pred, self.num_points, np.random.default_rng([self.seed, _PRED_STREAM]))
        to_truth, nearest_truth = _nearest(self.tree, samples.points)
        to_pred, nearest_pred = _nearest(_tree(samples.points), self.samples.points)
        cosines = np.stack(
            [
                (samples.normals * self.samples.normals[nearest_truth]).sum(1),
                (self.samples.normals * samples.normals[nearest_pred]).sum(1),
            ]
        )
        volume_iou, surface_iou = self._ious(pred) if with_iou else (None, None)
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
            volume_iou=volume_iou,
            surface_iou=surface_iou,
        )

    def _spurious(
        self, points: Float[np.ndarray, "num_points 3"], to_samples: Float[np.ndarray, " num_points"], voxel_size: float
    ) -> float:
        """Samples are no nearer than the surface, so only points far from all samples need the exact distance."""
        limit = SPURIOUS_VOXELS * voxel_size
        far = points[to_samples > limit]
        return float((self.query.distance(far) > limit).sum() / len(points)) if len(far) else 0.0

    @cached_property
    def is_closed(self) -> bool:
        return is_closed(self.mesh.vertices, self.mesh.faces)

    @cached_property
    def _near_points(self) -> Float[np.ndarray, "num_points 3"]:
        """Surface points moved by Gaussian noise."""
        rng = np.random.default_rng([self.seed, _NEAR_STREAM])
        points = sample_surface(self.mesh, self._num_iou_points, rng).points
        return points + rng.normal(size=points.shape) * rng.uniform(*IOU_NOISE, size=(len(points), 1))

    @cached_property
    def _near_inside(self) -> Bool[np.ndarray, " num_points"]:
        return self.query.inside(self._near_points)

    @property
    def _num_iou_points(self) -> int:
        return max(1, round(self.num_points * IOU_POINTS_SHARE))

    def _ious(self, pred: TriangleMesh) -> tuple[float | None, float | None]:
        """V-IoU and S-IoU, where both surfaces are closed.

        Points outside both solids count for nothing, so those of V-IoU are spread over the box around both and not over
        the whole cube: the same figure, with far less noise for thin shapes.
        """
        if not (self.is_closed and is_closed(pred.vertices, pred.faces)):
            return None, None
        query = SurfaceQuery(pred.vertices, pred.faces)
        low, high = np.minimum(self.query.low, query.low), np.maximum(self.query.high, query.high)
        rng = np.random.default_rng([self.seed, _BOX_STREAM])
        points = low + rng.random((self._num_iou_points, 3)) * (high - low)
        volume_iou = _iou(query.inside(points), self.query.inside(points))
        return volume_iou, _iou(query.inside(self._near_points), self._near_inside)


def sample_surface(mesh: Mesh, num_points: int, rng: np.random.Generator) -> SurfacePoints:
    """Uniform points on a surface: a face by its share of the area, then a point in it (Osada et al. 2002, eq. 1).

    Points come ordered by face, which makes neighbour queries several times faster.
    """
    corners = np.asarray(mesh.vertices, np.float64)[mesh.faces]
    scaled_normals = _scaled_normals(corners)
    areas = np.linalg.norm(scaled_normals, axis=1)
    upto = np.cumsum(areas)
    face = np.searchsorted(upto, np.sort(rng.random(num_points)) * upto[-1], side="right")
    face = np.minimum(face, np.flatnonzero(areas)[-1])  # rounding must not step onto a trailing face without area
    root, along = np.sqrt(rng.random((num_points, 1))), rng.random((num_points, 1))
    a, b, c = corners[face].swapaxes(0, 1)
    points = (1 - root) * a + root * (1 - along) * b + root * along * c
    return SurfacePoints(points, scaled_normals[face] / areas[face, None])


def checked(mesh: AnyMesh, name: str) -> TriangleMesh:
    """The mesh as plain float64 and integer arrays.

    Raises InputError for coordinates that are not finite and faces that point past the vertices.
    """
    vertices, faces = (mesh.vertices, mesh.faces) if isinstance(mesh, Mesh) else mesh
    vertices = np.asarray(vertices, np.float64).reshape(-1, 3)
    faces = np.asarray(faces).astype(np.int64).reshape(-1, 3)
    if not np.isfinite(vertices).all():
        bad = int((~np.isfinite(vertices).all(1)).sum())
        raise InputError(f"{name} has {bad} vertices that are not finite, expected none; check what produced it")
    if len(faces) and not 0 <= faces.min() <= faces.max() < len(vertices):
        raise InputError(
            f"{name} has faces that name vertices {faces.min()} to {faces.max()}, expected 0 to {len(vertices) - 1}; "
            "check what produced it"
        )
    return TriangleMesh(vertices, faces)


def has_surface(mesh: TriangleMesh) -> bool:
    return bool(_scaled_normals(mesh.vertices[mesh.faces]).any())


@dataclass(frozen=True)
class SdfMetrics:
    """A decoded field against the stored one. Values are in units of the truncation, so in [-1, 1]."""

    sdf_l1: float  # mean |difference| over the true band voxels that the prediction holds
    sign_errors: float  # share of them on the wrong side
    band_precision: float  # share of the voxels predicted near the surface (|value| < 0.9) that truly are
    band_recall: float  # share of the voxels truly near the surface that are predicted so


def compare_sdf(
    coords: Int[np.ndarray, "num_predicted 3"],
    sdf: Float[np.ndarray, " num_predicted"],
    true_coords: Int[np.ndarray, "num_band 3"],
    true_sdf: Float[np.ndarray, " num_band"],
) -> SdfMetrics:
    """Errors of predicted voxels against the true band, whose voxels all have |value| < 1. Coordinates are unique.

    Raises ValueError where the two have no voxel in common.
    """
    extent = int(max(coords.max(), true_coords.max())) + 1
    shape = (extent,) * 3
    keys = np.ravel_multi_index(tuple(coords.T), shape)
    true_keys = np.ravel_multi_index(tuple(true_coords.T), shape)
    _, row, true_row = np.intersect1d(keys, true_keys, assume_unique=True, return_indices=True)
    if len(row) == 0:
        raise ValueError(f"none of {len(keys)} predicted voxels is among the {len(true_keys)} voxels of the true band")
    near, truly_near = np.abs(sdf) < BAND_EDGE, np.abs(true_sdf) < BAND_EDGE
    num_common = int((near[row] & truly_near[true_row]).sum())
    return SdfMetrics(
        sdf_l1=float(np.abs(sdf[row] - true_sdf[true_row]).mean(dtype=np.float64)),
        sign_errors=float(((sdf[row] < 0) != (true_sdf[true_row] < 0)).mean()),
        band_precision=num_common / max(int(near.sum()), 1),
        band_recall=num_common / max(int(truly_near.sum()), 1),
    )


class Summary(NamedTuple):
    """One figure over many shapes."""

    mean: float
    median: float
    p95: float
    ci_low: float  # 95 % bootstrap interval of the mean over shapes
    ci_high: float
    num_shapes: int  # that have the figure


def summarise(values: Sequence[float | None], *, seed: int) -> Summary | None:
    """Mean, median, 95th percentile and percentile bootstrap interval; None where no shape has the figure.

    None among the values means that the figure does not exist for the shape (an open mesh has no volume); NaN raises.
    """
    present = np.array([v for v in values if v is not None], np.float64)
    if len(present) == 0:
        return None
    if not np.isfinite(present).all():
        raise ValueError(f"{int((~np.isfinite(present)).sum())} of {len(present)} values are not finite")
    rng = np.random.default_rng([seed, _BOOTSTRAP_STREAM])
    means = present[rng.integers(0, len(present), (NUM_RESAMPLES, len(present)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    median, p95 = np.percentile(present, [50, 95])
    return Summary(float(present.mean()), float(median), float(p95), float(low), float(high), len(present))


class Change(NamedTuple):
    """One figure of the same shapes in two runs, or two rows of one run."""

    old_mean: float
    new_mean: float
    mean: float  # of new - old, shape by shape
    ci_low: float  # 95 % bootstrap interval of that mean; does not hold 0 where the change is more than chance
    ci_high: float
    num_lower: int  # shapes whose figure fell
    num_higher: int
    num_shapes: int  # that have the figure in both


def summarise_change(old: Sequence[float | None], new: Sequence[float | None], *, seed: int) -> Change | None:
    """The paired difference: what shapes differ in by themselves drops out. None where no shape has both figures."""
    pairs = np.array([p for p in zip(old, new, strict=True) if None not in p], np.float64).reshape(-1, 2)
    difference = summarise(list(pairs[:, 1] - pairs[:, 0]), seed=seed)
    if difference is None:
        return None
    before, after = pairs.T
    return Change(
        old_mean=float(before.mean()),
        new_mean=float(after.mean()),
        mean=difference.mean,
        ci_low=difference.ci_low,
        ci_high=difference.ci_high,
        num_lower=int((after < before).sum()),
        num_higher=int((after > before).sum()),
        num_shapes=len(pairs),
    )


class _Nearest(NamedTuple):
    distance: Float[np.ndarray, " num_points"]
    row: Int[np.ndarray, " num_points"]


def _failure(thresholds: Sequence[float], *, closed: bool, has_voxel_size: bool) -> GeometryMetrics:
    iou = 0.0 if closed else None
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


def _iou(a: Bool[np.ndarray, " num_points"], b: Bool[np.ndarray, " num_points"]) -> float | None:
    """None where no point lies in either solid: they are too thin for this many points."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else None


def _scaled_normals(corners: Float[np.ndarray, "num_faces 3 3"]) -> Float[np.ndarray, "num_faces 3"]:
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _nearest(tree: cKDTree, points: Float[np.ndarray, "num_points 3"]) -> _Nearest:
    return _Nearest(*(np.asarray(found) for found in tree.query(points, workers=-1)))


def _tree(points: Float[np.ndarray, "num_points 3"]) -> cKDTree:
    return cKDTree(points, balanced_tree=True)  # without balance, points in a few small planes take minutes to ask
