"""Names of the user's are shown as one line that steers nothing."""

import os
import signal
import subprocess
import sys

import pytest

from model.errors import printable
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
