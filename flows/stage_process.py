"""One stage as a child process: `dvc repro --single-item STAGE`, its output line by line, and how it ended in words."""

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import INTERRUPTED
from tasks.run import ALREADY_RUNNING, REFUSED

KEEPER = Path(__file__).with_name("keeper.py")
LOOK_AROUND_SECONDS = 1.0

PROGRESS = re.compile(r"(?P<stage>.+): (?P<done>\d+) of (?P<total>\d+) \w+s, ")  # as tasks/progress.py writes it
EXIT_CODE = re.compile(r"failed to run: .*, exited with (-?\d+)$")
DVC_IS_BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")

Outcome = Literal["ran", "restored", "unchanged"]
OUTCOMES: dict[str, Outcome] = {
    "didn't change, skipping": "unchanged",
    "is cached - skipping run": "restored",  # an earlier run had the same inputs: its outputs, from DVC's cache
}


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
    command = [sys.executable, str(KEEPER), sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item"]
    command += [*(["--force"] if force else []), *(["--pull", "--allow-missing"] if remote else []), stage]
    started = time.monotonic()
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # the keeper's leash
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,  # Ctrl-C is for the flow, which then lets the stage save
    ) as process:
        try:
            for line in _lines(process, orphaned):
                lines.append(line)
                on_line(line)
            code = process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
    if code:
        raise _failure(stage, lines, code)
    return StageResult(stage, _outcome(lines), time.monotonic() - started)


def _outcome(lines: list[str]) -> Outcome:
    for text, outcome in OUTCOMES.items():
        if any(text in line for line in lines):
            return outcome
    return "ran"


def _lines(process: "subprocess.Popen[bytes]", orphaned: Callable[[], bool]) -> Iterator[str]:
    """Whole lines of the output as they come, until it ends. Raises Orphaned."""
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
                yield text
        if not read:
            return


def _failure(stage: str, lines: list[str], code: int) -> StageError:
    """What a failed `dvc repro` means: dvc itself always exits with 255, so its text has to say."""
    codes = [int(match[1]) for line in lines if (match := EXIT_CODE.search(line))]
    own_code = codes[-1] if codes else code
    signal_number = -own_code if own_code < 0 else own_code - 128
    name = stage.rpartition(":")[2]
    own = [line for line in lines if line.startswith(f"{name}: ") and not PROGRESS.match(line)]
    said = own or [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    reason = said[-1] if said else f"{name}: it said nothing"
    if own_code == ALREADY_RUNNING or (not codes and any(DVC_IS_BUSY.search(line) for line in lines)):
        return StageStoppedError(f"{reason} (another process works in this checkout)")
    if own_code == INTERRUPTED:
        return StageError(reason)
    if 0 < signal_number < 65 and codes:
        return StageStoppedError(
            f"{name}: killed by signal {signal_number}; where nobody did that, the machine was out of memory"
        )
    return GateRefusedError(reason) if own_code == REFUSED else StageError(reason)
