"""What runs under the keeper ends with whoever asked for it, with a chance to save first."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

KEEPER = [sys.executable, str(Path(__file__).parents[2] / "flows" / "keeper.py"), "--patience", "300"]
# A parent that ignores SIGINT, as dvc does, and a child in its group that saves on it, as a trainer does.
TRAINER = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("pid").write_text(str(os.getpid()))
time.sleep(600)
"""
DEAF = TRAINER.replace("SIGINT, save", "SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN")
PARENT = """
import pathlib, os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("parent").write_text(str(os.getpid()))
sys.exit(child.wait())
"""


def start(folder: Path, program: str) -> subprocess.Popen[bytes]:
    """The keeper with a parent and its child, once both run."""
    command = [*KEEPER, sys.executable, "-c", PARENT, program]
    keeper = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE)
    wait_until(lambda: both_run(folder))
    return keeper


def both_run(folder: Path) -> bool:
    return all((folder / name).exists() and (folder / name).read_text() for name in ("pid", "parent"))


def runs(folder: Path, name: str = "pid") -> bool:
    try:
        return psutil.Process(int((folder / name).read_text())).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def exit_code_of(program: str) -> int:
    """Of a program that ends by itself while its leash is held."""
    with subprocess.Popen([*KEEPER, sys.executable, "-c", program], stdin=subprocess.PIPE) as keeper:
        return keeper.wait()


@pytest.mark.parametrize("code", [0, 1, 75, 255])
def test_the_exit_code_is_the_commands(code: int):
    assert exit_code_of(f"exit({code})") == code


def test_a_signal_is_reported_as_a_shell_does():
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert exit_code_of(program) == 137


def test_closing_the_leash_lets_the_trainer_save(tmp_path: Path):
    keeper = start(tmp_path, TRAINER)
    keeper.stdin.close()
    assert keeper.wait() == 130
    assert (tmp_path / "saved").exists()
    assert not runs(tmp_path)


def test_the_death_of_the_caller_closes_it(tmp_path: Path):
    arguments = [*KEEPER, sys.executable, "-c", PARENT, TRAINER]
    caller = f"import subprocess; subprocess.Popen({arguments!r}, stdin=subprocess.PIPE).wait()"
    process = subprocess.Popen([sys.executable, "-c", caller], cwd=tmp_path)
    wait_until(lambda: both_run(tmp_path))
    process.kill()
    process.wait()
    wait_until(lambda: not runs(tmp_path))
    assert (tmp_path / "saved").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_keeper_does_the_same(tmp_path: Path, number: int):
    with start(tmp_path, TRAINER) as keeper:
        keeper.send_signal(number)
        assert keeper.wait() == 130
    assert (tmp_path / "saved").exists()


def test_ctrl_c_is_heard_although_the_caller_ignores_it(tmp_path: Path):
    waits = "import pathlib, time; pathlib.Path('pid').touch(); time.sleep(600)"  # Python's own handler, or none
    words = " ".join(map(shlex.quote, [*KEEPER, sys.executable, "-c", waits]))
    with subprocess.Popen(["sh", "-c", f"trap '' INT; exec {words}"], cwd=tmp_path, stdin=subprocess.PIPE) as keeper:
        wait_until((tmp_path / "pid").exists)
        keeper.send_signal(signal.SIGINT)
        assert keeper.wait() == 130


def test_the_death_of_the_keeper_reaches_the_command(tmp_path: Path):
    keeper = start(tmp_path, TRAINER)
    keeper.kill()
    keeper.communicate()
    wait_until(lambda: not runs(tmp_path, "parent"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # what the command started is its own to end


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path):
    keeper = start(tmp_path, TRAINER)
    os.kill(int((tmp_path / "parent").read_text()), signal.SIGKILL)
    assert keeper.wait() == 137
    assert (tmp_path / "saved").exists()
    assert not runs(tmp_path)
    keeper.stdin.close()


def test_what_does_not_listen_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    impatient = (
        "import signal; from flows import keeper; keeper.PATIENCE |= {signal.SIGINT: 0.2, signal.SIGTERM: 0.2}; "
    )
    impatient += f"keeper.keep([{sys.executable!r}, '-c', {PARENT!r}, {DEAF!r}])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    keeper = subprocess.Popen([sys.executable, "-c", impatient], cwd=tmp_path, stdin=subprocess.PIPE, env=environment)
    wait_until(lambda: both_run(tmp_path))
    keeper.stdin.close()
    keeper.wait()
    wait_until(lambda: not runs(tmp_path))
    assert not (tmp_path / "saved").exists()
