"""A stage in two processes, of which one is that of the test: the other alone has to begin anew, for seconds."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom
from socket import create_server

import pytest
import torch.distributed as dist

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


def in_two_processes(work: Callable[[], None], second: Sequence[str]) -> str:
    """Do the first one's work here, and the second's by its command; what that one says, once it has ended well."""
    both = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    other = start(second, **both, RANK="1", LOCAL_RANK="1")
    try:
        with as_torchrun_says(both | {"RANK": "0", "LOCAL_RANK": "0"}):
            work()
    except BaseException:
        other.kill()
        raise
    finally:
        said = other.communicate()[0]
    assert other.returncode == 0, said
    return said


@contextmanager
def as_torchrun_says(variables: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as here:
        for name, value in variables.items():
            here.setenv(name, value)
        try:
            yield
        finally:
            if dist.is_initialized():  # after an exception, as model/distributed.py leaves it
                dist.destroy_process_group()
