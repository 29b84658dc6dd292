"""A stage that shares its work: its plain command starts several processes, which end as one, in one sentence."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import InputError
from tasks.run import load_settings, only_one
from tasks.run.processes import MOST_PROCESSES, num_nodes, num_processes

ROOT = Path(__file__).parents[3]
STAGE = """
import os, signal, sys, time
import torch
from model.distributed import all_reduce_sum, in_process_group, rank
from model.errors import InputError
from tasks.run import run_stage

@in_process_group()
def stage(settings):
    total = int(all_reduce_sum(torch.tensor(rank() + 1)))
    if rank() == 0:
        print(f"{total} from all", os.getpid(), flush=True)
    if sys.argv[1] == "input":
        raise InputError("there are no meshes; add some")
    if sys.argv[1] == "fault" and rank() == 1:
        raise AssertionError("codes and counts differ")
    if sys.argv[1] == "killed" and rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] != "good":
        while True:
            all_reduce_sum(torch.tensor(1))
            time.sleep(0.1)

run_stage("stage1", stage)
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def start(mode: str, **more: str) -> "subprocess.Popen[str]":
    environment = os.environ | more | {"PYTHONPATH": str(ROOT), "SHAPE_TOKENIZER_PROCESSES": "2"}
    environment |= {"http_proxy": "http://127.0.0.1:9"}  # where nobody listens: they meet without it
    command = [sys.executable, "-c", STAGE, mode]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(run: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """Exit code and what was said."""
    said = run.communicate()[1].splitlines()
    return run.returncode, said


@pytest.mark.parametrize(
    ("mode", "code", "reason"),
    [
        ("input", 1, "stage1: there are no meshes; add some"),
        ("killed", 137, "stage1: process 2 of 2 was killed by signal 9; "),
    ],
)
def test_the_reason_comes_once(mode: str, code: int, reason: str):
    ended, (said,) = end(start(mode))
    assert ended == code
    assert said.startswith(reason)


def test_a_fault_of_ours_keeps_its_traceback_and_the_others_that_fail_for_it_are_silent():
    code, said = end(start("fault"))
    assert code == 1
    assert said[-1] == "AssertionError: codes and counts differ"
    assert said.count("Traceback (most recent call last):") == 1


def test_another_one_that_runs_is_told_by_exit_code():
    with only_one("stage1"):
        code, (said,) = end(start("good"))
    assert (code, said) == (75, f"stage1: process {os.getpid()} runs it already; wait for it or stop it")


@pytest.mark.parametrize("killed", [False, True])
def test_no_process_outlives_an_interrupted_or_killed_launcher(killed: bool):
    run = start("sleep")
    assert run.stdout is not None
    assert run.stdout.readline().startswith("3 from all")
    run.send_signal(signal.SIGKILL if killed else signal.SIGINT)
    code, said = end(run)  # once none has the pipes open
    assert code == (-signal.SIGKILL if killed else 130)
    interrupted = "stage1: interrupted; nothing is half-written, and the next run goes on from what was saved"
    assert said == ([] if killed else [interrupted])


@pytest.mark.parametrize("limit", ["0", "-1", "two", ""])
def test_a_limit_that_is_no_number_is_refused(limit: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHAPE_TOKENIZER_PROCESSES", limit)
    with pytest.raises(InputError, match=f"SHAPE_TOKENIZER_PROCESSES is '{limit}'"):
        num_processes("stage1", load_settings())


def test_two_machines_work_as_one():
    """Both are this one; each starts two processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    runs = [start("good", PET_NNODES="2", PET_RDZV_ENDPOINT=meeting, PET_RDZV_ID="test") for _ in range(2)]
    said = [run.communicate(timeout=120) for run in runs]
    assert [(run.returncode, errors) for run, (_, errors) in zip(runs, said, strict=True)] == [(0, "")] * 2
    assert sum(out.startswith("10 from all") for out, _ in said) == 1


@pytest.mark.parametrize("nodes", ["2", "0", "two"])
def test_machines_that_have_no_place_to_meet_are_refused(nodes: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PET_NNODES", nodes)
    with pytest.raises(InputError, match=f"PET_NNODES is '{nodes}'; .*PET_RDZV_ENDPOINT, the HOST:PORT"):
        num_nodes("stage1")


def test_the_stages_that_can_share_their_work_are_started_so():
    sharing = {file.stem for file in (ROOT / "tasks").glob("*.py") if "\n@in_process_group(" in file.read_text()}
    assert sharing == set(MOST_PROCESSES)
