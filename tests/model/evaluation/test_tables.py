"""Tables of made-up lines, whose means, ranks and differences are known."""

import numpy as np
import pandas as pd
import pytest

from model.evaluation.tables import aggregate, rank, spread, summarise_pairs, summarise_rows

ROWS = ("reference", "floor", "vae", "stage1", "stage2")


def test_shapes_are_ranked_and_spread_from_the_best_to_the_worst():
    errors = {"a": 0.5, "b": 0.1, "c": 0.4, "d": 0.2, "e": 0.3}
    lines = [{"shape": shape, "row": row, "cd_l1": error} for shape, error in errors.items() for row in ROWS]
    ranking = rank(pd.DataFrame(lines))
    assert list(ranking) == ["b", "d", "e", "c", "a"]
    assert ranking["c"] == dict.fromkeys(ROWS, 0.4)
    assert spread(ranking, 3) == ["b", "e", "a"]
    assert spread(ranking, 1) == ["b"]
    assert spread(ranking, 99) == list(ranking)


def test_means_are_over_the_shapes_that_have_the_figure():
    lines = [
        {"shape": shape, "row": row, "failed": False, "cd_l1": value, "volume_iou": iou}
        for row in ROWS
        for shape, value, iou in (("a", 0.1, 0.8), ("b", 0.3, None))
    ]
    table = pd.DataFrame(lines)
    figures = summarise_rows(table, aggregate(table, seed=0))["vae"]
    assert figures["cd_l1"] == pytest.approx(0.2)
    assert figures["cd_l1_median"] == pytest.approx(0.2)
    assert (figures["volume_iou"], figures["num_closed"]) == (0.8, 1)


def test_pairs_are_of_the_shapes_that_have_the_figure_in_both_rows():
    rng = np.random.default_rng(0)
    shapes = [f"s{i}" for i in range(30)]
    hardness = rng.uniform(0.1, 0.9, len(shapes))
    lines = []
    for row, gain in (("vae", 0.0), ("twin", 0.05), ("stage1", -0.1), ("stage2", 0.02)):
        for i, shape in enumerate(shapes):
            iou = None if i < 5 else hardness[i] + gain + rng.normal(0, 0.005)
            lines.append({"shape": shape, "row": row, "failed": False, "cd_l1": 0.1, "surface_iou": iou})
    paired = summarise_pairs(pd.DataFrame(lines), seed=0)
    assert list(paired) == ["stage2 - stage1", "stage2 - vae", "stage2 - twin"]
    for pair, expected in zip(paired, (0.12, 0.02, -0.03), strict=True):
        change = paired[pair]["surface_iou"]
        assert change["mean"] == pytest.approx(expected, abs=0.004)
        assert change["ci_high"] - change["ci_low"] < 0.01  # although the shapes differ by 0.25 among themselves
        assert change["num_shapes"] == 25
    assert paired["stage2 - vae"]["cd_l1"]["mean"] == 0
