"""What each writer keeps of a training is its history. Those that are not installed are skipped."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tasks.run import ParameterError, Settings, load_settings, paths
from tasks.run.settings import Tracking
from tasks.stage1 import stage1
from tasks.training.tracking import WRITERS as WRITERS_OF_RUNS
from tasks.training.tracking import Log, Run
from tests.dvc_project import ROOT, set_parameter
from tests.tasks.training.plane import Killed, fit, new_model, regression

WRITERS = ("tensorboard", "dvclive", "wandb", "trackio")
MISSING = [writer for writer in WRITERS if find_spec(writer) is None]


def of_tensorboard(folder: Path) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload().Scalars("loss")
    return {event.step: event.value for event in events}


def of_dvclive(folder: Path) -> dict[int, float]:
    return pd.read_csv(folder / "plots/metrics/loss.tsv", sep="\t").set_index("step").loss.to_dict()


def of_wandb(folder: Path) -> dict[int, float]:
    """Its file has messages of protobuf, in which name and value stand side by side; each comes twice."""
    (file,) = folder.rglob("*.wandb")
    content = file.read_bytes()

    def values(name: bytes) -> list[bytes]:
        field = re.escape(bytes([len(name)]) + name) + rb"\x82\x01(.)"
        found = re.finditer(field, content, re.DOTALL)
        return list(dict.fromkeys(content[match.end() : match.end() + match[1][0]] for match in found))

    return dict(zip(map(int, values(b"_step")), map(float, values(b"loss")), strict=True))


def of_trackio(folder: Path) -> dict[int, float]:
    from trackio.sqlite_storage import SQLiteStorage

    return {row["step"]: row["loss"] for row in SQLiteStorage.get_logs("shape-tokenizer", folder.name)}


@pytest.mark.parametrize("read", [of_tensorboard, of_dvclive, of_wandb, of_trackio])
def test_a_writer_gets_the_history(
    read: Callable[[Path], dict[int, float]],
    small_project: Path,
    small_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
):
    writer = read.__name__.removeprefix("of_")
    if writer in MISSING:
        pytest.skip(f"{writer} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(small_project / "trackio"))
    stage1(small_settings.model_copy(update={"tracking": Tracking(writer=writer)}))
    history = pd.read_csv(paths.METRICS / "stage1_history.tsv", sep="\t").set_index("step")
    (folder,) = (paths.TRACKING / writer).iterdir()
    assert read(folder) == pytest.approx(history.loss.to_dict(), rel=1e-5)


def test_a_row_that_a_kill_kept_from_the_writer_is_sent_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    sent: list[list[tuple[float, int]]] = []

    @contextmanager
    def writer(_run: Run) -> Iterator[Log]:
        sent.append([])
        yield lambda figures, step: sent[-1].append((figures.get("val_l1", 0.0), step))

    def killed() -> dict[str, float]:
        raise Killed

    monkeypatch.setitem(WRITERS_OF_RUNS, "tensorboard", writer)
    tracking = Tracking.model_construct(writer="tensorboard")
    for validate in (killed, lambda: {"val_l1": 0.5}):
        model = new_model()
        with suppress(Killed):
            fit(model, regression(model), tracking=tracking, validate=validate, validate_every=8)
    assert sent == [[(0.0, 5)], [(0.5, 8), (0.0, 10), (0.0, 15), (0.5, 16), (0.5, 20)]]


def test_without_a_writer_nothing_is_kept(small_project: Path, small_settings: Settings):
    assert small_settings.tracking.writer is None
    stage1(small_settings)
    assert not paths.TRACKING.exists()


@pytest.mark.skipif(not MISSING, reason="all are installed")
def test_one_that_is_not_installed_is_told_when_a_stage_starts(tmp_path: Path):
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    set_parameter(tmp_path, "tracking.writer", MISSING[0])
    told = rf"tracking: writer is {MISSING[0]}, which is not installed; .*pip install --editable '\.\[{MISSING[0]}\]'"
    with pytest.raises(ParameterError, match=told):
        load_settings(tmp_path / "params.yaml")
