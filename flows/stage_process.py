"""One stage as a child process, as `dvc repro --single-item STAGE` is: its output line by line, and how it ended."""

import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from flows import keeper
from model.errors import INTERRUPTED, printable
from tasks.run import ALREADY_RUNNING, REFUSED

REPRO = Path(__file__).with_name("repro.py")
LOOK_AROUND_SECONDS = 1.0

PROGRESS = re.compile(r"(?P<stage>[\w -]+): (?P<done>\d+) of (?P<total>\d+) \w+s, ")  # as model/progress.py writes it

Outcome = Literal["ran", "restored", "unchanged"]


@dataclass(frozen=True)
class StageResult:
    stage: str
    outcome: Outcome
    seconds: float


class StageError(RuntimeError):
    """A stage ended without its result; the message is the stage's own."""


class StageStoppedError(StageError):
    """The stage was ended from outside, or could not start because another process holds it: a retry may mend that."""


class GateRefusedError(StageError):
    """The codebook is not good enough. Nothing but other parameters or data changes that."""


class Orphaned(BaseException):
    """The process that started this flow run, Prefect's worker, is gone."""


def reproduce(
    stage: str, *, force: bool, remote: bool, on_line: Callable[[str], None], orphaned: Callable[[], bool]
) -> StageResult:
    """Bring one stage up to date; the stages that it needs are so already.

    With `remote`, what is missing is pulled from the default DVC remote, and missing inputs of a stage that is up to
    date are not looked for. Whatever exception ends the wait, be it a cancellation, the stage is told to stop, may save
    its state, and is gone when the exception leaves here. Raises StageError.
    """
    started = time.monotonic()
    lines: list[str] = []
    with TemporaryDirectory() as scratch:
        end = Path(scratch, "end.json")
        command = [sys.executable, keeper.__file__, sys.executable, "-P", str(REPRO), str(end), stage]
        command += [*(["--force"] if force else []), *(["--remote"] if remote else [])]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # the keeper's leash
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "SHELL": "/bin/sh"},  # the user's may be none
            start_new_session=True,  # Ctrl-C is for the flow, which then lets the stage save
        ) as process:
            try:
                for line in _lines(process, orphaned):
                    lines.append(line)
                    on_line(line)
                process.wait()
            finally:
                assert process.stdin is not None
                process.stdin.close()
                process.wait()
        how: dict[str, Any] = {"code": process.returncode}  # where DVC itself was killed
        if end.exists():
            how = json.loads(end.read_text())
    if "outcome" not in how:
        raise _failure(stage, lines, how)
    return StageResult(stage, how["outcome"], time.monotonic() - started)


def _lines(process: "subprocess.Popen[bytes]", orphaned: Callable[[], bool]) -> Iterator[str]:
    """Whole lines of the output as they come, until it ends, without what steers a terminal. Raises Orphaned."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), b""
    while True:
        if not select.select([descriptor], [], [], LOOK_AROUND_SECONDS)[0]:
            if orphaned():
                raise Orphaned
            continue
        read = os.read(descriptor, 65536)
        *whole, rest = (rest + read).split(b"\n")
        for line in [*whole, *([rest] if not read else [])]:
            if text := line.decode(errors="replace").rstrip():
                yield printable(text)
        if not read:
            return


def _failure(stage: str, lines: list[str], how: dict[str, Any]) -> StageError:
    """What a stage's end means, by what flows/repro.py says of it; the stage's own words only tell why."""
    code = how.get("code", 0)
    signal_number = -code if code < 0 else code - 128
    name = stage.rpartition(":")[2]
    own = [line for line in lines if line.startswith(f"{name}: ") and not PROGRESS.match(line)]
    said = own or [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    reason = said[-1] if said else f"{name}: it said nothing"
    if code == ALREADY_RUNNING or "busy" in how:
        return StageStoppedError(f"{reason} (another process works in this checkout)")
    if code == INTERRUPTED:
        return StageError(reason)
    if 0 < signal_number < 65:
        return StageStoppedError(
            f"{name}: killed by signal {signal_number}; where nobody did that, the machine was out of memory"
        )
    return GateRefusedError(reason) if code == REFUSED else StageError(reason)
