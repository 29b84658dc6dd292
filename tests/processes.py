"""A stage in two processes, of which one is that of the test, and the other is forked from one that waits for that."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from multiprocessing.context import BaseContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from random import SystemRandom
from socket import create_server
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
ONE_THREAD = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    """Below those that the system gives out, so that no connection of another test has it before a server does."""
    while True:
        port = SystemRandom().randrange(10_000, 32_768)
        with suppress(OSError), create_server(("127.0.0.1", port)):
            return port


def start(command: Sequence[str], **environment: str) -> "subprocess.Popen[str]":
    """Python with these arguments, in this folder; what it says on stderr is in its output."""
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | ONE_THREAD | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@cache
def fork_server() -> BaseContext:
    """Starts processes that have imported already what takes seconds: a process of one thread did so, which forks.

    They have this process's folder, but the environment and the limits that it had when the first was wanted.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["model.cli", "tasks.encode", "tasks.evaluate", "tasks.stage2", "tasks.voxelize"])
    with pytest.MonkeyPatch.context() as here:
        here.chdir(ROOT)  # where it finds them
        for name, value in ONE_THREAD.items():
            here.setenv(name, value)
        ensure_running()
    return context


def in_two_processes(work: Callable[[], None], second: Sequence[str]) -> str:
    """Do the first one's work here, and the second's as Python does with these arguments; what that one says.

    It has to end well.
    """
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with TemporaryDirectory() as folder:
        said = Path(folder, "said")
        environment = os.environ | ONE_THREAD | both | {"RANK": "1", "LOCAL_RANK": "1"}
        other = fork_server().Process(target=_run, args=(second, environment, said))
        other.start()
        try:
            with as_torchrun_says(both | {"RANK": "0", "LOCAL_RANK": "0"}):
                work()
        except BaseException:
            other.kill()
            raise
        finally:
            other.join()
        assert other.exitcode == 0, said.read_text()
        return said.read_text()


def _run(arguments: Sequence[str], environment: dict[str, str], said: Path) -> None:
    """As `python -m MODULE` or `python -c CODE` would in a new process."""
    with said.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    option, program = arguments
    if option == "-m":
        runpy.run_module(program, run_name="__main__")
    else:
        exec(program, {"__name__": "__main__"})


@contextmanager
def as_torchrun_says(variables: dict[str, str]) -> Iterator[None]:
    import torch.distributed as dist  # not by conftest.py, which the process that only hands out the tests reads too

    with pytest.MonkeyPatch.context() as here:
        for name, value in variables.items():
            here.setenv(name, value)
        try:
            yield
        finally:
            if dist.is_initialized():  # after an exception, as model/distributed.py leaves it
                dist.destroy_process_group()
