"""A machine that is short of something ends a stage in one sentence, and the next run completes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.encode import encode
from tasks.run import Settings, paths, run_stage
from tasks.stage1 import stage1
from tasks.stage2 import stage2
from tests.dvc_project import ROOT
from tests.faults import full, left_over, open_files, small_disk
from tests.shapes import one_thread

Stage = Callable[[Settings], None]
STAGES: dict[str, tuple[Stage, Path]] = {
    "encode": (encode, paths.LATENTS),
    "stage1": (stage1, paths.CODEBOOK),
    "stage2": (stage2, paths.STAGE2),
}


@pytest.fixture
def project(tmp_path: Path, made_once: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The small project, on a disk of its own where that is allowed."""
    folder = tmp_path / "project"
    folder.mkdir()
    with small_disk(folder), one_thread():
        monkeypatch.chdir(folder)
        shutil.copytree(made_once, folder, dirs_exist_ok=True)
        shutil.copy(ROOT / "params.yaml", folder)
        yield folder
        monkeypatch.chdir(tmp_path)


def said_by(name: str, settings: Settings) -> str:
    """The sentence with which the stage ends."""
    stage, _ = STAGES[name]
    with pytest.raises(SystemExit) as ended:
        run_stage(name, lambda _: stage(settings))
    said = str(ended.value)
    assert said.startswith(f"{name}: ")
    assert said.endswith("; nothing is half-written, and no input is at fault: run the stage again")
    assert "\n" not in said
    return said


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("room", [0, 8192, *(pytest.param(2**n, marks=pytest.mark.slow) for n in range(14, 24, 2))])
def test_a_full_disk_ends_a_stage_and_the_next_run_completes(
    project: Path, made_once: Path, small_settings: Settings, name: str, room: int
):
    few_steps = small_settings.stage2.model_copy(update={"steps": 5, "validate_every": 5})
    settings = small_settings.model_copy(update={"stage2": few_steps})
    stage, out = STAGES[name]
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(paths.RESUME, ignore_errors=True)
    with full(project, room=room):
        try:
            said = said_by(name, settings)
        except pytest.fail.Exception:
            assert room > 8192, "all that it writes has room"
        else:
            assert "No space left on device: " in said or "File too large: " in said
            assert str(project) in said or str(out) in said
            assert not out.exists()
    assert not left_over(project)
    stage(settings)
    assert contents(out) == contents(made_once / out) or name == "stage2"


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("more", [0, 1, 2])
def test_too_many_open_files_are_the_machines_fault(project: Path, small_settings: Settings, name: str, more: int):
    shutil.rmtree(paths.RESUME, ignore_errors=True)
    with open_files(more):
        assert "Too many open files" in said_by(name, small_settings)
    assert not left_over(project)
