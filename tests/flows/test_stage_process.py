"""How a stage ended is what DVC and exit codes say, whatever a mesh's name makes it print."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from flows.stage_process import GateRefusedError, StageError, StageResult, StageStoppedError, reproduce
from tests.dvc_project import set_parameter
from tests.flows.conftest import replace_stage

pytestmark = pytest.mark.usefixtures("checkout")

# A mesh's name can hold all of it.
FORGED = """x.stl
Stage 'gate' didn't change, skipping
Stage 'gate' is cached - skipping run, checking out outputs
ERROR: failed to reproduce 'gate': failed to run: python -m tasks.gate, exited with 3
is busy, it is being blocked by
gate: 1 of 2 steps, \x1b[2J\x1b]0;title\x07"""


def run(stage: str, on_line=print) -> StageResult:
    return reproduce(stage, force=False, remote=False, on_line=on_line, orphaned=lambda: False)


def test_a_stage_is_unchanged_or_ran_or_was_restored():
    assert run("stage2").outcome == "unchanged"
    before = json.loads(Path("metrics/stage2.json").read_text())
    set_parameter(Path(), "stage2.seed", 1)
    assert run("stage2").outcome == "ran"
    set_parameter(Path(), "stage2.seed", 0)
    assert run("stage2").outcome == "restored"
    assert json.loads(Path("metrics/stage2.json").read_text()) == before


def test_what_it_prints_says_nothing_of_that():
    replace_stage("gate", Path("tasks/gate.py").read_text() + f"print({FORGED!r})\n")
    Path("metrics/gate.json").unlink()
    lines: list[str] = []
    assert run("gate", lines.append).outcome == "ran"
    assert "Stage 'gate' didn't change, skipping" in lines
    assert r"gate: 1 of 2 steps, \x1b[2J\x1b]0;title\x07" in lines


@pytest.mark.parametrize(("code", "kind"), [(1, StageError), (3, GateRefusedError), (75, StageStoppedError)])
def test_a_failure_is_what_the_exit_code_says(code: int, kind: type[StageError]):
    replace_stage(
        "gate", f"import sys; print({FORGED!r}); print('gate: the reason', file=sys.stderr); sys.exit({code})"
    )
    with pytest.raises(StageError, match=r"^gate: the reason") as raised:
        run("gate")
    assert type(raised.value) is kind


def test_where_another_process_works_with_the_same_files_a_retry_may_help():
    held = {str(Path("metrics/gate.json").absolute()): {"pid": os.getpid(), "cmd": "dvc repro"}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps({"write": held}))
    with pytest.raises(StageStoppedError, match=r"another process works in this checkout"):
        run("gate")


def test_where_dvc_itself_is_killed_a_retry_may_help():
    replace_stage("gate", "import time; print('on its way', flush=True); time.sleep(600)")

    def kill(line: str) -> None:
        if line == "on its way":
            keeper = next(p for p in psutil.Process().children() if "keeper.py" in " ".join(p.cmdline()))
            (dvc,) = keeper.children()
            assert "repro.py" in " ".join(dvc.cmdline())
            dvc.send_signal(signal.SIGKILL)

    with pytest.raises(StageStoppedError, match=r"^gate: killed by signal 9;"):
        run("gate", kill)


def test_dvc_takes_a_folder_with_names_that_are_no_text():
    folder = Path("own")
    folder.mkdir()
    for name in (b"plain.stl", b"x\nStage 'voxelize' didn't change, skipping\n.stl", b"no_\xff_text.stl"):
        Path(folder, os.fsdecode(name)).write_bytes(b"mesh")
    Path(folder, os.fsdecode(b"no_\xfe_text")).mkdir()
    Path(folder, os.fsdecode(b"no_\xfe_text"), "plain.stl").write_bytes(b"mesh")
    set_parameter(Path(), "voxelize.meshes", str(folder))
    assert run("voxelize").outcome == "ran"
    assert run("voxelize").outcome == "unchanged"
    Path(folder, "plain.stl").write_bytes(b"another")
    assert run("voxelize").outcome == "ran"
