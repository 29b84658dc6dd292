"""A triangle mesh as a sparse signed distance field."""

import os
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from ..bricks import BRICK_SIZE
from ..errors import InputError
from ..sparse_sdf import Faces, SDFMode, SparseSDF, Surface, Vertices
from ..warp import wp
from .bodies import orient_bodies
from .distance import Bricks, band_bricks, short_triangles
from .edges import Edges, find_edges, wind_consistently
from .rows import bad_flip_ratio, band_rows
from .sign import WoundSurface, brick_insides, cap_holes, insides_of_shell
from .thin import add_shell, find_lost, thin_parts

Mode = Literal["solid", "shell"]
SHELL_VOXELS = 1.0  # half the thickness of a shell

HALF_EXTENT = 0.95  # the longest side of a normalised mesh runs from -0.95 to 0.95


class Normalisation(NamedTuple):
    """world = cube * scale + center"""

    center: Float[np.ndarray, "3"]
    scale: float


def voxelize(
    vertices: Vertices,
    faces: Faces,
    *,
    resolution: int,
    truncation_voxels: float,
    mode: Mode | Literal["auto"] = "solid",
    max_bad_flip_ratio: float = 0.03,
    device: str = "cpu",
) -> SparseSDF:
    """The sparse SDF of any triangle mesh, which is first normalised by its bounding box.

    Distances are exact. As a solid, the sign is that of the generalised winding number, so that open meshes work too,
    as far as they have an inside. As a shell, both sides of every face are outside: the distance less one voxel. "auto"
    makes a shell of what would be a solid with a bad_flip_ratio above `max_bad_flip_ratio`, and of what is nowhere
    thick enough to have a voxel inside, unless it is flat: thinner than a voxel along an axis. Of a solid's parts that
    are too thin to be seen it makes a shell beside the solid. Below resolution 64 the grid's border cuts a shell open.

    `device` is where the kernels run: "cpu" (one thread) or "cuda". Raises InputError for what is not a mesh with an
    extent.
    """
    if resolution % BRICK_SIZE or resolution <= 0:
        raise InputError(f"resolution is {resolution}; expected a positive multiple of {BRICK_SIZE}; round it")
    if not 0 < truncation_voxels < resolution:
        raise InputError(f"truncation_voxels is {truncation_voxels}; expected between 0 and {resolution}; try 2.0")
    if mode not in ("auto", "solid", "shell"):
        raise InputError(f"mode is {mode!r}; expected auto, solid or shell; choose one")
    vertices, faces = check_mesh(vertices, faces)
    center, scale = normalisation(vertices, faces)
    vertices = ((vertices - center) / scale + 1) * (resolution / 2)  # in voxels
    faces, edges = wind_consistently(faces, len(vertices), device=device)
    corners = short_triangles(vertices, faces, device=device)

    band = partial(band_bricks, resolution=resolution, truncation=truncation_voxels, device=device)
    field = _Field("shell")
    if mode != "shell":
        wound = _wound(vertices, faces, edges, corners, device=device)
        shell_above = max_bad_flip_ratio if mode == "auto" else np.inf
        thin = mode == "auto" and bool(np.ptp(vertices[faces.reshape(-1)], axis=0).min() >= 1)  # else it is flat
        field = _solid(corners, wound, band, shell_above=shell_above, thin=thin)
    level = SHELL_VOXELS if field.kind == "shell" else 0.0
    bricks, inside = field.bricks, field.inside
    if bricks is None or inside is None:
        bricks = band(corners, level=level)
        inside = insides_of_shell(bricks, level)
    coords, sdf = band_rows(bricks, inside, level=level, truncation=truncation_voxels)
    return SparseSDF(
        coords=coords,
        sdf=sdf,
        resolution=resolution,
        truncation_voxels=float(truncation_voxels),
        center=center,
        scale=scale,
        brick_coords=bricks.coords.numpy(),
        brick_inside=inside.numpy().view(bool).reshape(-1, BRICK_SIZE, BRICK_SIZE, BRICK_SIZE),
        bad_flip_ratio=field.bad_flip_ratio,
        mode=field.kind,
        lost_area_share=field.lost_share,
    )


class _Field(NamedTuple):
    kind: SDFMode
    bricks: Bricks | None = None  # None, as inside, of a shell: it is still to be made
    inside: wp.array | None = None  # int8, 512 for every brick
    bad_flip_ratio: float = 0.0
    lost_share: float = 0.0


def _solid(
    corners: wp.array, wound: WoundSurface, band: Callable[..., Bricks], *, shell_above: float, thin: bool
) -> _Field:
    """A solid with, if `thin`, shells where it is too thin to be seen; or the verdict that all is to be a shell."""
    bricks = band(corners, level=0.0)
    inside = brick_insides(wound, bricks)
    ratio = bad_flip_ratio(bricks, inside)
    if ratio > shell_above:
        return _Field("shell", bad_flip_ratio=ratio)
    lost = find_lost(wound.corners, bricks, inside)
    parts = thin_parts(wound.corners, lost, bricks, inside) if thin else None
    if parts is None or parts.kind == "solid":
        return _Field("solid", bricks, inside, ratio, lost.share)
    if parts.kind == "shell":
        return _Field("shell", bad_flip_ratio=ratio)
    shell = band(parts.corners, level=SHELL_VOXELS)
    bricks, inside = add_shell(bricks, inside, shell, level=SHELL_VOXELS, insides=partial(brick_insides, wound))
    return _Field("mixed", bricks, inside, ratio, find_lost(wound.corners, bricks, inside).share)


def _wound(vertices: Vertices, faces: Faces, edges: Edges, corners: wp.array, *, device: str) -> WoundSurface:
    """The mesh as its winding numbers are to be counted; corners are those of its short triangles."""
    oriented = orient_bodies(vertices, faces, edges, device=device)
    if oriented is None:
        return WoundSurface(corners, cap_holes(vertices, edges.boundary))
    faces, cavities = oriented.faces, None
    if oriented.overlapping is not None:
        cavities = short_triangles(vertices, faces[oriented.overlapping], device=device)
        faces = faces[~oriented.overlapping]
    caps = cap_holes(vertices, find_edges(faces, len(vertices), device=device).boundary)
    return WoundSurface(short_triangles(vertices, faces, device=device), caps, cavities, oriented.sign)


def normalised_surface(vertices: Vertices, faces: Faces) -> Surface:
    """The mesh itself in the cube, as voxelize sees it: its bodies wound consistently, the faces' normals outward."""
    vertices, faces = check_mesh(vertices, faces)
    center, scale = normalisation(vertices, faces)
    vertices = (vertices - center) / scale
    faces, edges = wind_consistently(faces, len(vertices), device="cpu")
    if (oriented := orient_bodies(vertices, faces, edges, device="cpu")) is not None:
        faces = oriented.faces
    a, b, c = vertices[faces].transpose(1, 0, 2)
    inside_out = np.einsum("ij,ij->", a, np.cross(b, c)) < 0  # six times the enclosed volume
    return Surface(vertices.astype(np.float32), (faces[:, ::-1] if inside_out else faces).astype(np.int32))


def check_mesh(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
    """The mesh as float64 and int64. Raises InputError saying what is wrong with it."""
    vertices, faces = np.asarray(vertices, np.float64), np.asarray(faces)
    if faces.size == 0:
        raise InputError("the mesh has no faces; expected triangles; export it as a surface, not as points or lines")
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise InputError(
            f"vertices are {vertices.shape} and faces {faces.shape}; expected [V, 3] and [F, 3]; triangulate the mesh"
        )
    if not np.issubdtype(faces.dtype, np.integer):
        raise InputError(f"faces are {faces.dtype}; expected integers, indices into the vertices; convert them")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(
            f"faces use vertices {faces.min()} to {faces.max()} but there are {len(vertices)}; "
            "the file is damaged; export it again"
        )
    finite = np.isfinite(vertices).all(1)
    if not finite.all() and (bad := int((~finite[faces]).any(1).sum())):
        raise InputError(f"{bad} of {len(faces)} faces have NaN or infinite vertices; expected finite ones; repair it")
    return vertices, faces.astype(np.int64)


def normalisation(vertices: Vertices, faces: Faces) -> Normalisation:
    """What brings the bounding box of the faces to the cube: centre to 0, longest side to 2 * 0.95."""
    used = np.zeros(len(vertices), bool)
    used[faces.reshape(-1)] = True
    corners = vertices[used]
    low, high = corners.min(0), corners.max(0)
    with np.errstate(over="ignore"):
        longest = float((high - low).max())
    if not longest > 0:
        raise InputError(f"all {len(faces)} faces lie in one point; expected a mesh with an extent; remove the file")
    if not np.isfinite(longest):
        raise InputError(
            f"coordinates go from {low.min():g} to {high.max():g}, more than numbers can hold; scale the mesh down"
        )
    return Normalisation(low + (high - low) / 2, longest / (2 * HALF_EXTENT))


def compile_kernels() -> None:
    """Have in the cache all that voxelize runs on a CPU, before processes start that would all compile it at once.

    A cache that can't be written to is found out here, where no mesh can be blamed for it. Raises OSError.
    """
    wp.load_module(__package__, device="cpu", recursive=True, max_workers=len(os.sched_getaffinity(0)))
    vertices = np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    closed, opened = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], [[0, 2, 1], [0, 1, 3], [0, 3, 2]]
    against = [*closed, *(np.array(closed)[:, ::-1] + 4).tolist()]  # two bodies, one inside out
    for faces in (closed, opened, against):
        both = np.concatenate([vertices, vertices + 2])
        voxelize(both, np.array(faces), resolution=16, truncation_voxels=2.0, mode="auto", max_bad_flip_ratio=0.0)
