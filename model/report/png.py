"""Pictures as small PNG files."""

from io import BytesIO

from matplotlib.figure import Figure
from PIL import Image

DOTS_PER_INCH = 100
NUM_COLOURS = 64  # of a picture's palette: it makes the file several times smaller


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def png_of_figure(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    coverage = Image.Quantize.MAXCOVERAGE  # the usual median cut merges the colours of thin lines
    return png(Image.open(buffer).convert("RGB").quantize(NUM_COLOURS, method=coverage, dither=Image.Dither.NONE))
