"""The picture sheet of an evaluation: shapes side by side, as a small file."""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..plots import small_png
from .gallery import Gallery, Ranking
from .render import WHITE, SheetRow, draw_sheet

BLOCKS = 2  # shapes side by side
GAP = 24  # pixels between them
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
    return small_png(Image.fromarray(sheet))


def webp(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A tenth of what PNG takes for a shaded shape."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=WEBP_QUALITY, method=6)
    return buffer.getvalue()


def _side_by_side(blocks: Sequence[UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "tallest total_width 3"]:
    tallest = max(len(block) for block in blocks)
    padded = [np.pad(block, ((0, tallest - len(block)), (0, GAP), (0, 0)), constant_values=WHITE) for block in blocks]
    return np.concatenate(padded, axis=1)[:, :-GAP]
