"""Pictures of meshes, by ray casting on the CPU: no display, no GPU, no OpenGL.

The view is orthographic. +z is up, azimuth turns about z from +x towards +y, elevation is the camera's height over the
xy plane; both in degrees.
"""

from collections.abc import Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from ..warp import QUICK_TO_COMPILE, wp

wp.set_module_options(QUICK_TO_COMPILE)

AZIMUTH, ELEVATION = -50.0, 28.0
MARGIN = 1.08  # half width of the picture / half width of what it frames
RAYS_A_SIDE = 2  # rays per pixel: 2 x 2
WHITE = 255

_BACKGROUND = wp.constant(wp.vec3(1.0, 1.0, 1.0))
_SURFACE = wp.constant(wp.vec3(0.60, 0.70, 0.84))


class View(NamedTuple):
    """An orthographic camera. All vectors are in the mesh's frame; right, up and forward are orthonormal."""

    right: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]
    forward: Float[np.ndarray, "3"]
    center: Float[np.ndarray, "3"]
    half_width: float


class SheetRow(NamedTuple):
    label: str
    pictures: Sequence[UInt8[np.ndarray, "size size 3"]]


@no_type_check
@wp.func
def _soft(cosine: float) -> float:
    """Light from a large source: falls off slowly past the terminator, so that no side is flat."""
    wrapped = wp.max(cosine * 0.7 + 0.3, 0.0)
    return wrapped * wrapped


@no_type_check
@wp.kernel
def _cast(
    mesh: wp.uint64,
    corner: wp.vec3,
    step_right: wp.vec3,
    step_down: wp.vec3,
    forward: wp.vec3,
    key_light: wp.vec3,
    fill_light: wp.vec3,
    far: float,
    image: wp.array2d(dtype=wp.vec3),
) -> None:
    row, column = wp.tid()
    start = corner + (float(column) + 0.5) * step_right + (float(row) + 0.5) * step_down
    hit = wp.mesh_query_ray(mesh, start, forward, far)
    colour = _BACKGROUND
    if hit.result:
        normal = hit.normal
        if wp.dot(normal, forward) > 0.0:
            normal = -normal  # both sides of a face look the same
        point = start + hit.t * forward + 1.0e-3 * normal
        key = _soft(wp.dot(normal, key_light))
        if wp.mesh_query_ray_anyhit(mesh, point, key_light, far):
            key *= 0.55
        rim = 1.0 + wp.dot(normal, forward)  # 0 facing the camera, 1 seen edge on: draws the outline
        light = 0.32 + 0.64 * key + 0.22 * _soft(wp.dot(normal, fill_light)) - 0.20 * rim * rim * rim
        colour = wp.cw_mul(_SURFACE, wp.vec3(light, light, light))
    image[row, column] = colour


def render_mesh(
    vertices: Float[np.ndarray, "num_vertices 3"],
    faces: Int[np.ndarray, "num_faces 3"],
    *,
    size: int,
    azimuth: float = AZIMUTH,
    elevation: float = ELEVATION,
    frame_of: Float[np.ndarray, "num_framed 3"] | None = None,
) -> UInt8[np.ndarray, "size size 3"]:
    """A shaded picture on white; a mesh without faces is all white.

    The picture is centred and scaled to hold `frame_of`, by default the mesh itself; give the true vertices to show
    several reconstructions at one scale.
    """
    if len(faces) == 0:
        return np.full((size, size, 3), WHITE, np.uint8)
    view = _view(vertices[np.unique(faces)] if frame_of is None else frame_of, azimuth, elevation)
    # In units of the picture's half width: rays are float32, and a mesh may have any size at any place.
    points = (np.asarray(vertices, np.float64) - view.center) / view.half_width
    far = 2 * float(np.linalg.norm(points[np.unique(faces)], axis=1).max()) + 1
    rays = size * RAYS_A_SIDE
    pixel = 2 / rays
    corner = view.up - view.right - far / 2 * view.forward
    mesh = wp.Mesh(
        points=wp.array(points.astype(np.float32), dtype=wp.vec3, device="cpu"),
        indices=wp.array(np.asarray(faces, np.int32).ravel(), dtype=wp.int32, device="cpu"),
    )
    image = wp.empty((rays, rays), dtype=wp.vec3, device="cpu")
    key_light = _unit(-0.55 * view.right + 0.75 * view.up - 0.65 * view.forward)
    fill_light = _unit(0.9 * view.right + 0.1 * view.up - 0.5 * view.forward)
    vectors = [corner, pixel * view.right, -pixel * view.up, view.forward, key_light, fill_light]
    inputs = [mesh.id, *map(wp.vec3, vectors), far]
    wp.launch(_cast, (rays, rays), inputs=inputs, outputs=[image], device="cpu")
    pixels = image.numpy().reshape(size, RAYS_A_SIDE, size, RAYS_A_SIDE, 3).mean((1, 3))
    return np.round(np.clip(pixels, 0, 1) ** (1 / 1.2) * WHITE).astype(np.uint8)


def draw_sheet(columns: Sequence[str], rows: Sequence[SheetRow]) -> UInt8[np.ndarray, "height width 3"]:
    """Pictures of one size in a table: a heading over every column, a label under every row's pictures."""
    size = len(rows[0].pictures[0])
    heading, label = 26, 22
    sheet = Image.new("RGB", (size * len(columns), heading + (size + label) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, name in enumerate(columns):
        draw.text(((i + 0.5) * size, heading / 2), name, "black", ImageFont.load_default(15), anchor="mm")
    for j, row in enumerate(rows):
        top = heading + (size + label) * j
        for i, picture in enumerate(row.pictures):
            sheet.paste(Image.fromarray(picture), (i * size, top))
        draw.text((6, top + size + label / 2), row.label, "#444444", ImageFont.load_default(12), anchor="lm")
        bottom = top + size + label - 1
        draw.line([(0, bottom), (sheet.width, bottom)], fill="#dddddd")
    return np.asarray(sheet)


def _view(framed: Float[np.ndarray, "num_framed 3"], azimuth: float, elevation: float) -> View:
    a, e = np.radians([azimuth, elevation])
    forward = -np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([-np.sin(a), np.cos(a), 0.0])
    up = np.cross(right, forward)
    axes = np.stack([right, up, forward])
    seen = np.asarray(framed, np.float64) @ axes.T
    low, high = seen.min(0), seen.max(0)
    half_width = MARGIN * float((high - low)[:2].max() / 2) or 1.0
    return View(right, up, forward, (low + high) / 2 @ axes, half_width)


def _unit(vector: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    return vector / np.linalg.norm(vector)
