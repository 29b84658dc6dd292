import os
import shutil
from pathlib import Path

import pytest
import torch

from tasks.run import ALREADY_RUNNING, AlreadyRunningError, Settings, code, load_settings, only_one, paths, run_stage
from tasks.training import ResumePoint, fingerprint

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings(ROOT / "params.yaml")


# --- the saved state -------------------------------------------------------------------------------------------------


def test_what_is_saved_comes_back():
    point = ResumePoint("stage2", "f00d")
    assert point.load(CPU) is None
    for step in (1, 2):
        point.save({"step": step, "weights": torch.arange(3.0), "rows": [{"loss": 0.5}]})
    state = ResumePoint("stage2", "f00d").load(CPU)
    assert (state["step"], state["rows"]) == (2, [{"loss": 0.5}])
    assert torch.equal(state["weights"], torch.arange(3.0))


def test_another_fingerprint_or_stage_starts_from_nothing():
    ResumePoint("stage2", "f00d").save({"step": 1})
    assert ResumePoint("stage2", "cafe").load(CPU) is None
    assert ResumePoint("stage1", "f00d").load(CPU) is None


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_state_is_said_and_set_aside_and_the_one_before_is_used(share, capsys):
    point = ResumePoint("stage2", "f00d")
    for step in (1, 2):
        point.save({"step": step, "weights": torch.arange(1000.0)})
    cut(point.directory / "state.pt", share)
    assert point.load(CPU)["step"] == 1
    assert capsys.readouterr().err.count("state.pt is damaged and set aside as state.pt.damaged; going on") == 1
    assert point.load(CPU)["step"] == 1
    cut(point.directory / "previous.pt", share)
    assert point.load(CPU) is None
    assert "previous.pt is damaged" in capsys.readouterr().err
    assert sorted(path.name for path in point.directory.iterdir()) == ["previous.pt.damaged", "state.pt.damaged"]


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def test_the_state_of_another_run_is_not_used(capsys):
    for run in ("f00d", "cafe"):
        ResumePoint("stage2", run).save({"step": run})
    shutil.copy(paths.RESUME / "stage2/cafe/state.pt", paths.RESUME / "stage2/f00d/state.pt")
    assert ResumePoint("stage2", "f00d").load(CPU) is None
    assert ResumePoint("stage2", "cafe").load(CPU) == {"step": "cafe"}


def test_what_is_remembered_is_made_once_and_again_if_damaged(capsys):
    point = ResumePoint("stage1", "f00d")
    assert point.remember("start", lambda: torch.ones(2)).equal(torch.ones(2))
    assert point.remember("start", lambda: torch.zeros(2)).equal(torch.ones(2))
    (point.directory / "start.pt").write_bytes(b"")
    assert point.remember("start", lambda: torch.zeros(2)).equal(torch.zeros(2))
    assert "start.pt is damaged" in capsys.readouterr().err


def test_a_save_that_fails_leaves_the_one_before():
    point = ResumePoint("stage2", "f00d")
    point.save({"step": 1})

    class Unsaveable:
        def __reduce__(self):
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        point.save({"step": 2, "weights": Unsaveable()})
    assert point.load(CPU) == {"step": 1}


def test_of_a_finished_run_the_last_state_stays_and_of_others_of_the_stage_the_last_that_were_stopped():
    for stage, name in [("stage2", "ended"), *(("stage2", f"stopped{i}") for i in range(4)), ("stage1", "other")]:
        for step in (1, 2):
            ResumePoint(stage, name).save({"step": step})
    for i in range(4):
        os.utime(ResumePoint("stage2", f"stopped{i}").directory, (i, i))
    ResumePoint("stage2", "ended").finish()
    point = ResumePoint("stage2", "new")
    point.save({"step": 1})
    point.save({"step": 2})
    point.remember("start1", lambda: torch.ones(2))
    for left_over in ("state.pt.damaged", ".state.pt.123.partial"):
        (point.directory / left_over).touch()
    point.finish()
    left = {run.name for run in point.directory.parent.iterdir()}
    assert left == {"new", "stopped1", "stopped2", "stopped3"}
    assert ResumePoint("stage2", "stopped1").load(CPU) == {"step": 2}
    assert ResumePoint("stage2", "new").load(CPU) == {"step": 2}
    assert sorted(path.name for path in point.directory.iterdir()) == ["finished", "start1.pt", "state.pt"]
    assert ResumePoint("stage1", "other").load(CPU) == {"step": 2}


# --- the fingerprint -------------------------------------------------------------------------------------------------


def test_the_same_parameters_and_inputs_have_the_same_fingerprint(settings: Settings):
    Path("a").write_text("a")
    Path("b").write_text("b")
    sections = [settings.stage2, settings.codebook]
    here, there = (fingerprint("stage2", sections, "", map(Path, names)) for names in ("ab", "ba"))
    assert here == there


@pytest.mark.parametrize(
    "change", [{"lr": 0.5}, {"steps": 501}, {"seed": 1}, {"lambda_outside": 0.0}, {"train": "decoder"}]
)
def test_any_parameter_changes_the_fingerprint(settings: Settings, change):
    sections = [settings.stage2, settings.codebook]
    other = [settings.stage2.model_copy(update=change), settings.codebook]
    assert fingerprint("stage2", other, "", []) != fingerprint("stage2", sections, "", [])


def test_any_input_changes_the_fingerprint(settings: Settings):
    Path("codebook").write_text("codes")
    before = fingerprint("stage2", [settings.stage2], "", [Path("codebook")])
    Path("codebook").write_text("other codes")
    assert fingerprint("stage2", [settings.stage2], "", [Path("codebook")]) != before
    assert fingerprint("stage2", [settings.stage2], "", []) != before
    Path("codebook").write_text("codes")
    assert fingerprint("stage2", [settings.stage2], "", [Path("codebook")]) == before
    assert fingerprint("stage2", [settings.stage2], "other shapes", [Path("codebook")]) != before


@pytest.fixture
def copied_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's code, to be edited, in place of the code that runs."""
    for folder in ("model", "tasks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize("edited", ["model/vae/losses.py", "model/sparse_sdf.py", "tasks/stage2.py"])
def test_the_stages_code_changes_the_fingerprint(settings: Settings, copied_code: Path, edited: str):
    before = fingerprint("stage2", [settings.stage2], "", [])
    assert fingerprint("stage2", [settings.stage2], "", []) == before
    with (copied_code / edited).open("a") as file:
        file.write("x = 2\n")
    assert fingerprint("stage2", [settings.stage2], "", []) != before


def test_code_that_the_stage_does_not_use_leaves_it_alone(settings: Settings, copied_code: Path):
    before = fingerprint("stage2", [settings.stage2], "", [])
    with (copied_code / "model/report/page.py").open("a") as file:
        file.write("x = 2\n")
    assert fingerprint("stage2", [settings.stage2], "", []) == before


# --- one at a time ---------------------------------------------------------------------------------------------------


def test_a_second_process_of_a_stage_exits_with_75_and_names_the_first(tmp_path: Path, capsys):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with only_one("stage2"), pytest.raises(SystemExit) as ended:
        run_stage("stage2", lambda _: pytest.fail("both hold the lock"))
    assert ended.value.code == ALREADY_RUNNING == 75
    assert f"stage2: process {os.getpid()} runs it already" in capsys.readouterr().err


def test_other_stages_may_run_beside_it():
    with only_one("stage1"), only_one("stage2"):
        pass


def test_the_lock_is_free_again_afterwards_also_after_a_failure():
    with pytest.raises(RuntimeError), only_one("stage2"):
        raise RuntimeError
    with only_one("stage2"):
        assert (paths.RESUME / "stage2.lock").read_text() == str(os.getpid())


def test_the_end_of_training_keeps_the_lock():
    with only_one("stage2"):
        point = ResumePoint("stage2", "f00d")
        point.save({"step": 1})
        point.finish()
        with pytest.raises(AlreadyRunningError), only_one("stage2"):
            pytest.fail("both hold the lock")
