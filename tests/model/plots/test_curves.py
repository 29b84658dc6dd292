"""The curves of training: which panels there are, and what stands in them."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from model.errors import InputError
from model.plots import curves, draw_history, read_history

FIRST = pd.DataFrame({"step": [10, 20, 40], "vq_loss": [3.0, 2.0, 1.0], "lr": [0.1, 0.2, 0.1], "grad_norm": [1, 2, 3]})
SECOND = pd.DataFrame(
    {"step": [1, 2], "recon_loss": [0.5, 0.4], "val_l1": [np.nan, 0.3], "lr": [0.1, 0.0], "gone": np.nan}
)


def drawn(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Figure:
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "png_of_figure", lambda figure: figures.append(figure) or b"")
    draw_history(*arguments)
    return figures[0]


def test_panels_are_those_that_some_stage_can_fill_with_each_stage_one_wide(monkeypatch: pytest.MonkeyPatch):
    figure = drawn(monkeypatch, {"stage1": FIRST, "stage2": SECOND})
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_visible()}
    assert list(panels) == ["reconstruction", "codebook losses", "learning rate"]
    of_vq = [line for line in panels["codebook losses"].lines if line.get_label() == "vq"]
    assert [line.get_xdata().tolist() for line in of_vq] == [[0.25, 0.5, 1.0]]
    validation = [line for line in panels["reconstruction"].lines if line.get_label() == "validation L1"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in validation] == [([2.0], [0.3])]
    labels = [text.get_text() for text in panels["learning rate"].get_legend().get_texts()]
    assert labels == ["decoder"]  # once, for both stages


def test_the_rest_is_drawn_on_demand(monkeypatch: pytest.MonkeyPatch):
    histories = {"stage1": FIRST, "stage2": SECOND}
    others = curves.other_columns(histories)
    assert list(others) == ["grad_norm"]  # a column without a value is none
    assert [axes.get_title() for axes in drawn(monkeypatch, histories, others).axes] == ["grad_norm"]


def test_it_is_a_picture_of_six_panels_at_most():
    columns = {name: [1.0, 2.0] for panel in curves.CURVES.values() for name in panel}
    assert len(curves.CURVES) == 6
    assert Image.open(io.BytesIO(draw_history({"stage2": pd.DataFrame({"step": [1, 2]} | columns)}))).width > 800


def test_history_may_lack_columns_but_not_exist_without_steps(tmp_path: Path):
    assert draw_history({"stage1": pd.DataFrame({"step": [1], "loss": [0.1]}), "stage2": pd.DataFrame({"step": [1]})})
    with pytest.raises(InputError, match=r"gone\.tsv does not exist"):
        read_history(tmp_path / "gone.tsv")
    (tmp_path / "empty.tsv").write_text("step\tloss\n")
    with pytest.raises(InputError, match="no logged step"):
        read_history(tmp_path / "empty.tsv")
