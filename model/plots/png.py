"""Small PNG files: a palette of few colours makes one several times smaller."""

from io import BytesIO

from PIL import Image

NUM_COLOURS = 64


def small_png(picture: Image.Image, *, method: Image.Quantize = Image.Quantize.MEDIANCUT) -> bytes:
    """A PNG of an RGB picture in 64 colours, chosen by `method`, without dithering."""
    buffer = BytesIO()
    few_colours = picture.quantize(NUM_COLOURS, method=method, dither=Image.Dither.NONE)
    few_colours.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
