"""Pictures of a run, as small PNG files: shapes side by side, loss curves, code usage."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..errors import InputError
from .gallery import PICTURED
from .png import NUM_COLOURS, png, png_of_figure
from .render import WHITE, SheetRow, draw_sheet

BLOCKS = 2  # shapes side by side
GAP = 24  # pixels between them
WEBP_QUALITY = 82

# Panels of the loss curves, each with the columns it shows where a history has them.
PANELS: Mapping[str, Sequence[str]] = {
    "training losses": ("loss", "recon_loss", "outside_loss", "vq_loss", "commitment_loss"),
    "held-out reconstruction": ("val_l1", "val_sign_errors", "val_outside"),
    "codebook usage within a batch": ("codebook_usage",),
    "perplexity within a batch": ("perplexity",),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
}
DASHED = ("commitment_loss",)  # its values are those of vq_loss, whose line would be hidden
LOGARITHMIC = ("training losses", "gradient norm")


def draw_shapes(rows: Sequence[SheetRow]) -> bytes:
    """The picture sheet: each shape's pictures, in the order of PICTURED."""
    height = -(-len(rows) // BLOCKS)
    blocks = [draw_sheet(tuple(PICTURED.values()), rows[i : i + height]) for i in range(0, len(rows), height)]
    sheet = _side_by_side(blocks)
    return png(Image.fromarray(sheet).quantize(NUM_COLOURS, dither=Image.Dither.NONE))


def webp(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A tenth of what PNG takes for a shaded shape."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", quality=WEBP_QUALITY, method=6)
    return buffer.getvalue()


def _side_by_side(blocks: Sequence[UInt8[np.ndarray, "height width 3"]]) -> UInt8[np.ndarray, "tallest total_width 3"]:
    tallest = max(len(block) for block in blocks)
    padded = [np.pad(block, ((0, tallest - len(block)), (0, GAP), (0, 0)), constant_values=WHITE) for block in blocks]
    return np.concatenate(padded, axis=1)[:, :-GAP]


def read_history(path: Path) -> pd.DataFrame:
    """What a training stage logged. Raises InputError where the file is missing or has no steps."""
    try:
        history = pd.read_csv(path, sep="\t")
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{path} can't be read as a training history ({error}); run dvc repro again") from error
    if "step" not in history or history.empty:
        raise InputError(f"{path} has no logged step, expected a column step with rows; run its stage again")
    return history


def draw_history(histories: Mapping[str, pd.DataFrame]) -> bytes:
    """One column per stage, one row per panel that any stage can fill."""
    panels = {
        title: columns
        for title, columns in PANELS.items()
        if any(column in history for column in columns for history in histories.values())
    }
    figure = Figure(figsize=(5.2 * len(histories), 1.9 * len(panels) + 0.6), layout="constrained")
    grid = figure.subplots(len(panels), len(histories), squeeze=False)
    for column, (stage, history) in enumerate(histories.items()):
        for row, (title, names) in enumerate(panels.items()):
            axes = grid[row, column]
            _draw_curves(axes, history, [name for name in names if name in history])
            axes.set_title(f"{stage}: {title}", fontsize=9)
            if axes.lines and title in LOGARITHMIC:
                axes.set_yscale("log")
        grid[-1, column].set_xlabel("step", fontsize=8)
    return png_of_figure(figure)


def _draw_curves(axes: Axes, history: pd.DataFrame, names: Sequence[str]) -> None:
    for name in names:
        logged = history[["step", name]].dropna()
        marker, dashes = "." if len(logged) < 20 else "", "--" if name in DASHED else "-"
        axes.plot(logged["step"], logged[name], label=name, linewidth=1.1, marker=marker, linestyle=dashes)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)
    if not names:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color="0.5")
    elif len(names) > 1:
        axes.legend(fontsize=7)


def draw_usage(counts: Mapping[str, Int[np.ndarray, " codebook_size"]]) -> bytes:
    """How often each code occurs, most frequent first; a flat line at 1 would be a codebook used evenly."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for stage, count in counts.items():
        relative = np.sort(count)[::-1] * len(count) / max(int(count.sum()), 1)
        axes.step(np.arange(1, len(count) + 1), relative, where="mid", linewidth=1.3, label=stage)
    axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--", label="even use")
    axes.set_xlabel("code, by frequency")
    axes.set_ylabel("frequency / even share")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return png_of_figure(figure)


def usage_table(counts: Mapping[str, Int[np.ndarray, " codebook_size"]]) -> str:
    """TSV: tokens of the most frequent code, the next, and so on, one column per stage."""
    table = pd.DataFrame({stage: np.sort(count)[::-1] for stage, count in counts.items()})
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    return table.to_csv(sep="\t", lineterminator="\n")
