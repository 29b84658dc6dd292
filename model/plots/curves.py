"""Curves of a training run and the use of codes, as small PNG files."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ..errors import InputError, reading
from .png import small_png

DOTS_PER_INCH = 100

# What a person looks at while and after training: the columns of each panel, with their labels.
CURVES: Mapping[str, Mapping[str, str]] = {
    "reconstruction": {"recon_loss": "training", "val_l1": "validation L1"},
    "codebook losses": {"vq_loss": "vq", "commitment_loss": "commitment"},
    "codebook usage": {"codebook_usage": "training", "val_codebook_usage": "held out"},
    "perplexity": {"perplexity": "training", "val_perplexity": "held out"},
    "revived codes, skipped steps": {"revived_codes": "revived codes", "skipped_steps": "skipped steps"},
    "learning rate": {"lr": "decoder", "encoder_lr": "encoder"},
}
LOGARITHMIC = ("reconstruction", "codebook losses")
DASHED = ("commitment_loss",)  # its values may be those of vq_loss, whose line would be hidden
PANELS_A_ROW = 3


def png_of_figure(figure: Figure) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    coverage = Image.Quantize.MAXCOVERAGE  # the usual median cut merges the colours of thin lines
    return small_png(Image.open(buffer).convert("RGB"), method=coverage)


def read_history(path: Path) -> pd.DataFrame:
    """What a training stage logged. Raises InputError where the file is missing or has no steps."""
    with reading(path, "run dvc repro again"):
        history = pd.read_csv(path, sep="\t")
    if "step" not in history or history.empty:
        raise InputError(f"{path} has no logged step, expected a column step with rows; run its stage again")
    return history


def other_columns(histories: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, str]]:
    """Panels for all that is logged and not among the curves, a column each."""
    shown = {"step", *(column for columns in CURVES.values() for column in columns)}
    return {column: {column: ""} for column in _logged(histories) if column not in shown}


def draw_history(histories: Mapping[str, pd.DataFrame], panels: Mapping[str, Mapping[str, str]] = CURVES) -> bytes:
    """One picture of all stages, side by side in each panel, each as wide as the others however many steps it has.

    Panels that no stage can fill are left out, but for a picture without any.
    """
    logged = set(_logged(histories))
    titles = [title for title, columns in panels.items() if logged & {*columns}] or list(panels)
    num_rows = -(-len(titles) // PANELS_A_ROW)
    figure = Figure(figsize=(4.2 * min(len(titles), PANELS_A_ROW), 2.4 * num_rows + 0.2), layout="constrained")
    grid = figure.subplots(num_rows, min(len(titles), PANELS_A_ROW), squeeze=False).ravel()
    for axes, title in zip(grid, titles, strict=False):
        _draw_curves(axes, histories, panels[title])
        axes.set_title(title, fontsize=9)
        if title in LOGARITHMIC:
            axes.set_yscale("log")
    for axes in grid[len(titles) :]:
        axes.set_visible(False)
    return png_of_figure(figure)


def _logged(histories: Mapping[str, pd.DataFrame]) -> list[str]:
    """The columns that hold any value, each once."""
    filled = (str(column) for history in histories.values() for column in history.columns[history.notna().any()])
    return list(dict.fromkeys(filled))


def _draw_curves(axes: Axes, histories: Mapping[str, pd.DataFrame], labels: Mapping[str, str]) -> None:
    """A colour for each column, labelled once."""
    unlabelled = dict(labels)
    ticks: dict[float, str] = {}
    for place, (stage, history) in enumerate(histories.items()):
        last = history["step"].max()
        ticks |= {place: "", place + 0.5: f"{stage}, {last} steps"}
        for colour, name in enumerate(labels):
            if name not in history:
                continue
            curve = history[["step", name]].dropna()
            (line,) = axes.plot(place + curve["step"] / last, curve[name], color=f"C{colour}", linewidth=1.1)
            line.set_label(unlabelled.pop(name, ""))
            line.set_marker("." if len(curve) < 20 else "")
            line.set_linestyle("--" if name in DASHED else "-")
        if place:
            axes.axvline(place, color="0.6", linewidth=0.8)
    axes.set_xlim(0, len(histories))
    axes.set_xticks([*ticks], [*ticks.values()])
    axes.tick_params(which="both", labelsize=7)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", alpha=0.25)
    if any(label and not label.startswith("_") for label in axes.get_legend_handles_labels()[1]):
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
    table = pd.DataFrame({stage: pd.Series(np.sort(count)[::-1], dtype="Int64") for stage, count in counts.items()})
    table.index = pd.RangeIndex(1, len(table) + 1, name="rank")
    return table.to_csv(sep="\t", lineterminator="\n")
