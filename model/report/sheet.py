"""The picture sheet of an evaluation: shapes side by side, as a small file."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from .gallery import Gallery, Ranking
from .render import WHITE, SheetRow, draw_sheet

BLOCKS = 2  # shapes side by side
GAP = 24  # pixels between them
NUM_COLOURS = 64  # of the PNG's palette: it makes the file several times smaller
WEBP_QUALITY = 82


def draw_shapes(ranking: Ranking, shapes: Sequence[str], gallery: Gallery) -> bytes:
    """The picture sheet: each shape's pictures, in the order of the gallery's titles, and their CD-L1."""
    places = {shape: place for place, shape in enumerate(ranking, start=1)}
    rows = []
    for shape in shapes:
        distances = " / ".join(f"{ranking[shape][row]:.4f}" for row in gallery.titles if row != "truth")
        label = f"{places[shape]} of {len(ranking)}: {shape}   CD-L1 {distances}"
        rows.append(SheetRow(label, gallery.pictures(shape)))
    height = -(-len(rows) // BLOCKS)
    titles = tuple(gallery.titles.values())
    sheet = _side_by_side([draw_sheet(titles, rows[i : i + height]) for i in range(0, len(rows), height)])
    return _encoded(Image.fromarray(sheet).quantize(NUM_COLOURS, dither=Image.Dither.NONE), "PNG", optimize=True)


def webp(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A tenth of what PNG takes for a shaded shape."""
    return _encoded(Image.fromarray(picture), "WEBP", quality=WEBP_QUALITY, method=6)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _side_by_side(blocks: Sequence[UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "tallest total_width 3"]:
    tallest = max(len(block) for block in blocks)
    padded = [np.pad(block, ((0, tallest - len(block)), (0, GAP), (0, 0)), constant_values=WHITE) for block in blocks]
    return np.concatenate(padded, axis=1)[:, :-GAP]
