"""What DVC would hang on or fail on is named before DVC looks at it."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.scm import SCMError

from model.errors import InputError
from tasks.inputs import DVC_LOCKS, DVC_SETTINGS, check_inputs, prepare_dvc

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["voxelize"]["meshes"] = "meshes"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "meshes" / "deep").mkdir(parents=True)
    (tmp_path / "meshes" / "chair.stl").write_bytes(b"whatever")
    return tmp_path


def test_a_folder_of_files_and_links_to_them_is_fine(here: Path) -> None:
    (here / "elsewhere.stl").write_bytes(b"whatever")
    (here / "meshes" / "link.stl").symlink_to(here / "elsewhere.stl")
    check_inputs()


def test_links_to_folders_behind_which_dvc_sees_no_change_are_named(here: Path) -> None:
    (here / "elsewhere").mkdir()
    (here / "meshes" / "deep" / "linked").symlink_to(here / "elsewhere")
    with pytest.raises(InputError, match=r"1 of what is in meshes .*meshes/deep/linked: DVC does not see what changes"):
        check_inputs()


def test_the_folder_itself_may_be_a_link(here: Path) -> None:
    (here / "meshes").rename(here / "other")
    (here / "meshes").symlink_to(here / "other")
    check_inputs()


def test_no_folder_is_left_to_the_stage(here: Path) -> None:
    (here / "meshes").rename(here / "other")
    check_inputs()


def test_pipes_and_links_to_nothing_are_named_at_once(here: Path) -> None:
    os.mkfifo(here / "meshes" / "deep" / "pipe.stl")
    (here / "meshes" / "notes.txt").symlink_to(here / "gone")
    with pytest.raises(InputError, match=r"2 of what is in meshes .*pipe\.stl: it is a named pipe.*notes\.txt: .*link"):
        check_inputs()
    done = subprocess.run(  # noqa: PLW1510 - its exit code is what is tested
        [sys.executable, "-m", "tasks.inputs"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "meshes/deep/pipe.stl" in done.stderr


def test_many_are_counted(here: Path) -> None:
    for number in range(14):
        (here / "meshes" / f"{number:02}.stl").symlink_to(here / "gone")
    with pytest.raises(InputError, match=r"14 of what is in meshes.*09\.stl.*; and 4 more"):
        check_inputs()


def test_make_repro_looks_before_dvc_does() -> None:
    """By what make would run, without running it."""
    commands = subprocess.run(["make", "-n", "repro"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert commands.index("tasks.inputs") < commands.index("dvc repro")


@pytest.mark.parametrize("left", [b"", b'{"write": {"/a": {"pi'])
def test_dvcs_locks_that_a_kill_cut_short_are_made_anew(
    here: Path, capsys: pytest.CaptureFixture[str], left: bytes
) -> None:
    Repo.init(no_scm=True).close()
    DVC_SETTINGS.write_text("[core]\n    no_scm = true\n")
    (here / "dvc.yaml").write_text("stages: {nothing: {cmd: 'true', always_changed: true}}")

    def reproduce() -> None:
        with Repo() as repo:
            repo.reproduce()

    reproduce()
    assert DVC_LOCKS.is_file()  # it is where DVC has it
    DVC_LOCKS.write_bytes(left)
    with pytest.raises(DvcException):
        reproduce()
    prepare_dvc()
    assert "cut short" in capsys.readouterr().err
    reproduce()


def test_locks_that_are_whole_or_in_use_stay(here: Path) -> None:
    prepare_dvc()  # none there
    DVC_LOCKS.parent.mkdir(parents=True)
    DVC_LOCKS.write_text("{}")
    guard = DVC_LOCKS.with_name("rwlock.lock")
    guard.touch()
    prepare_dvc()
    assert DVC_LOCKS.read_text() == "{}"
    DVC_LOCKS.write_text("")
    with guard.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        prepare_dvc()
        assert DVC_LOCKS.is_file()


# What DVC leaves open where it fails, Python 3.13 tells of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dvc_works_where_there_is_no_git_repository(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / ".dvc").mkdir()
    (here / ".dvc" / "config").touch()
    with pytest.raises(SCMError):
        Repo().status()
    prepare_dvc()
    assert f"{here} is no git repository" in capsys.readouterr().err
    with Repo() as repo:
        repo.status()
    prepare_dvc()
    assert not capsys.readouterr().err
    DVC_SETTINGS.write_text("[core]\n    remote = mine\n")
    with pytest.raises(InputError, match=r"config --local core\.no_scm true"):
        prepare_dvc()
