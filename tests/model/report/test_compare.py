import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from model.cli import main
from model.errors import InputError
from model.report import PER_SHAPE
from model.report.compare import check_comparable, compare_rows, num_better, read_evaluation, verdict
from model.tables import write_table

CONDITIONS = {"resolution": 64, "num_points": 1000, "seed": 0}


def table(**figures: list[float | None]) -> pd.DataFrame:
    length = len(next(iter(figures.values())))
    return pd.DataFrame({"shape": [f"s{i}" for i in range(length)], "row": "stage2", **figures})


def write(directory: Path, frame: pd.DataFrame, **conditions: int) -> Path:
    directory.mkdir()
    write_table(directory / PER_SHAPE, frame, CONDITIONS | conditions)
    return directory


def test_better_is_smaller_for_distances_and_larger_for_shares():
    distances, shares = np.linspace(0.01, 0.05, 9), np.linspace(0.3, 0.9, 9)
    old = table(**{"cd_l1": list(distances), "fscore_0.01": list(shares), "num_tokens": [9.0] * 9})
    new = table(**{"cd_l1": list(0.9 * distances), "fscore_0.01": list(shares - 0.1), "num_tokens": [9.0] * 9})
    changes = {figure.column: (figure, change) for figure, change in compare_rows(old, new, seed=0)}
    assert {column: verdict(*pair) for column, pair in changes.items()} == {
        "cd_l1": "better",
        "fscore_0.01": "worse",
        "num_tokens": "",
    }
    assert (num_better(*changes["cd_l1"]), num_better(*changes["fscore_0.01"])) == (9, 0)
    assert changes["cd_l1"][1].mean == pytest.approx(-0.1 * distances.mean())


def test_a_change_within_chance_has_no_verdict():
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    (pair,) = compare_rows(table(cd_l1=[0.1] * 40), table(cd_l1=list(0.1 + noise - noise.mean())), seed=0)
    assert verdict(*pair) == ""


def test_shapes_are_matched_by_name_and_those_without_the_figure_left_out():
    old = table(cd_l1=[0.1, 0.2, 0.3], volume_iou=[0.5, None, 0.9])
    new = table(cd_l1=[0.1, 0.2, 0.3], volume_iou=[0.6, 0.7, None]).iloc[::-1]
    changes = {figure.column: change for figure, change in compare_rows(old, new, seed=0)}
    assert (changes["cd_l1"].mean, changes["cd_l1"].num_lower, changes["cd_l1"].num_higher) == (0, 0, 0)
    assert changes["volume_iou"].num_shapes == 1
    assert changes["volume_iou"].mean == pytest.approx(0.1)


def test_runs_that_were_measured_otherwise_are_refused(tmp_path: Path):
    frame = table(cd_l1=[0.1, 0.2])
    old = read_evaluation(write(tmp_path / "old", frame))
    with pytest.raises(InputError, match="resolution is 64 in the old run and 128 in the new one"):
        check_comparable(old, read_evaluation(write(tmp_path / "finer", frame, resolution=128)))
    with pytest.raises(InputError, match="1 shapes are in one run only, s1 for one"):
        check_comparable(old, read_evaluation(write(tmp_path / "fewer", frame.iloc[:1])))
    with pytest.raises(InputError, match=r"nowhere.* does not exist"):
        read_evaluation(tmp_path / "nowhere")
    frame.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="does not say 'resolution'"):
        read_evaluation(tmp_path / "other.parquet")


def test_the_command_prints_the_change_and_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = write(tmp_path / "old", table(cd_l1=[0.01, 0.02, 0.03]))
    new = write(tmp_path / "new", table(cd_l1=[0.008, 0.018, 0.028]))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(old), str(new)])
    assert not ended.value.code
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("CD-L1")]
    assert re.sub(" +", " ", line) == "CD-L1 0.02000 0.01800 -0.00200 -0.00200 to -0.00200 3 of 3 better"


def test_the_rows_of_one_evaluation_are_compared_with_stage_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = {"vae": 0.01, "stage1": 0.03, "stage2": 0.02}
    frame = pd.concat([table(cd_l1=[error, 2 * error]).assign(row=row) for row, error in rows.items()])
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(write(tmp_path / "one", frame))])
    assert not ended.value.code
    lines = [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith(("from", "CD-L1"))] == [
        "from stage 1 to stage 2",
        "CD-L1 0.04500 0.03000 -0.01500 -0.02000 to -0.01000 2 of 2 better",
        "from VAE to stage 2",
        "CD-L1 0.01500 0.03000 +0.01500 +0.01000 to +0.02000 0 of 2 worse",
    ]


def test_what_can_not_be_compared_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new = write(tmp_path / "new", table(cd_l1=[0.01, 0.02]))
    damaged = write(tmp_path / "damaged", table(cd_l1=[0.01, 0.02])) / PER_SHAPE
    metadata = {**pq.read_schema(damaged).metadata, b"seed": b"1"}
    pq.write_table(pq.read_table(damaged).replace_schema_metadata(metadata), damaged)
    for arguments, words in (
        ((tmp_path, new), "does not exist"),
        ((new, damaged), "its content is not what its digest says"),
        ((new, new, "--rows", "vae", "stage2"), "no row vae; expected one of its own, stage2; choose by --rows"),
        ((new,), "nothing to hold stage 2 against; name another evaluation"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *map(str, arguments)])
        assert str(ended.value).startswith("shape-tokenizer: ")
        assert words in str(ended.value)
    assert capsys.readouterr().out == ""
