"""Names are shown as one line that steers nothing; what the machine lacks is told and blamed on no file."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.errors import InputError, is_of_environment, printable, reason_of, some_of, told_of_environment
from tests.dvc_project import ROOT


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("chair 12_Ünï-çødé (1).stl", "chair 12_Ünï-çødé (1).stl"),
        ("椅子　１.stl", "椅子　１.stl"),  # with the space of its script
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[2J\x1b]0;title\x07\x9b1m", r"\x1b[2J\x1b]0;title\x07\x9b1m"),
        (os.fsdecode(b"no_\xff_text"), r"no_\udcff_text"),
        (
            "stl.\u202eriahc\u2028\u200b",
            r"stl.\u202eriahc\u2028\u200b",
        ),  # read from right to left, another line, nothing
    ],
)
def test_a_name_is_one_line_of_what_can_be_seen(name: str, shown: str):
    assert printable(name) == shown
    assert len(printable(name).splitlines()) == 1
    assert printable(name).encode().decode() == shown


def test_of_many_names_the_first_are_told_and_how_many_more_there_are():
    names = [f"s{number}" for number in range(12)]
    assert some_of(names) == "s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, and 2 more"
    assert some_of(names[:10], separator="; ") == "s0; s1; s2; s3; s4; s5; s6; s7; s8; s9"


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_ctrl_c_is_heard_whatever_the_caller_makes_of_it(handler: signal.Handlers):
    code = (
        "import signal; from model.errors import hear_interrupts; hear_interrupts(); signal.raise_signal(signal.SIGINT)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


HUGE = 2**55
MESH = Path("chair.stl")


def raised_by(act) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        act()
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "No space left on device: the disk of /"),
        (OSError(errno.ENOSPC, "", "data/a"), "No space left on device: data/a; make room there"),
        (OSError("Error while serializing: I/O error: No space left on device (os error 28)"), "device: the disk of /"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "data"), "Permission denied: data; change its perm"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "a"), "Too many open files: a; allow more (ulimit -n)"),
        (RuntimeError("unable to open file <a>: Too many open files (24)"), "Too many open files (unable to open fil"),
        (MemoryError(), "Cannot allocate memory (how much was asked for is not known); end other programs"),
        (raised_by(lambda: torch.empty(HUGE)), "Cannot allocate memory ([enforce fail"),
        (raised_by(lambda: bytes(HUGE)), "Cannot allocate memory"),
    ],
)
def test_what_the_machine_lacks_is_told_and_blamed_on_no_file(error: Exception, words: str):
    assert is_of_environment(error)
    assert words in told_of_environment(error)
    if "allocate" not in words:
        with pytest.raises(type(error)):
            reason_of(error, given=MESH, more_memory="raise max_memory_gb")


def test_what_a_fault_of_the_system_says_itself_is_told():
    error = ChildProcessError(errno.ECHILD, "processes end before they begin to work")
    assert "processes end before they begin to work; mend it" in told_of_environment(error)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (InputError("it is empty: No space left on device"), "it is empty: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", str(MESH)), "the file can't be opened (Permission denied)"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", str(MESH)), "can't be opened (No such file or"),
        (MemoryError(), "there was not enough memory for it; raise max_memory_gb"),  # of what this process may have
        (
            ZeroDivisionError("division by zero"),
            "(ZeroDivisionError: division by zero); this is a fault of ours",
        ),
        (ValueError("Too many open files"), "this is a fault of ours"),
    ],
)
def test_what_is_wrong_with_one_file_is_its_own_reason(error: Exception, reason: str):
    assert reason in reason_of(error, given=MESH, more_memory="raise max_memory_gb")
