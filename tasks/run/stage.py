"""How every stage starts and ends: settings in, one clear sentence and an exit code out."""

import fcntl
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from model.errors import INTERRUPTED, InputError, hear_interrupts, sentence_of, skip_last_collection
from model.files import write_whole
from tasks.run.paths import METRICS, RESUME
from tasks.run.processes import End, hand_over, is_launched, launch, num_nodes, num_processes, stop_with_launcher
from tasks.run.settings import Settings, load_settings

ALREADY_RUNNING = 75  # EX_TEMPFAIL of sysexits.h: try again later
REFUSED = 3


class RefusedError(InputError):
    """A stage did its work, and what it judged is not good enough to go on with."""


class AlreadyRunningError(RuntimeError):
    """Another process runs the same, in this checkout."""


def run_stage(name: str, stage: Callable[[Settings], None]) -> None:
    """Run one stage and exit: 0 done, 1 with the reason in one sentence, 3 refused with one, 130 interrupted.

    On a machine with several GPUs that is done by a process for each, where the stage can share its work.
    """
    hear_interrupts()
    skip_last_collection()
    if is_launched():
        stop_with_launcher()
    end = _end_of(name, stage)
    if end is None:
        return
    if is_launched():
        hand_over(end)
    elif end.code == 1:
        sys.exit(end.reason)
    else:
        print(end.reason, file=sys.stderr)
    sys.exit(end.code)


def _end_of(name: str, stage: Callable[[Settings], None]) -> End | None:
    """None where it ended well. Raises what is a fault of ours, unless a launcher is to tell it."""
    first = os.environ.get("RANK", "0") == "0"  # of the processes that share the work: it holds the lock for all
    try:
        settings = load_settings()
        number, nodes = num_processes(name, settings), num_nodes(name)
        if number * nodes > 1:
            return launch(name, number, nodes)
        with only_one(name) if first else nullcontext():
            stage(settings)
    except AlreadyRunningError as error:
        return End(ALREADY_RUNNING, str(error))
    except Exception as error:
        if (told := sentence_of(error, again="stage")) is not None:
            return End(REFUSED if isinstance(error, RefusedError) else 1, f"{name}: {told}")
        if is_launched():
            return End(1, traceback.format_exc().rstrip(), is_fault=True)
        raise
    except KeyboardInterrupt:
        return End(
            INTERRUPTED, f"{name}: interrupted; nothing is half-written, and the next run goes on from what was saved"
        )
    return None


def write_metrics(stage: str, figures: Mapping[str, Any]) -> None:
    """What the stage leaves in metrics/, for `dvc metrics` and for people."""
    write_whole(METRICS / f"{stage}.json", json.dumps(figures, indent=2) + "\n")


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """Hold the lock of this name, a stage's or the flow's.

    Raises AlreadyRunningError where another process has it, as after DVC alone was killed.
    """
    RESUME.mkdir(parents=True, exist_ok=True)
    with (RESUME / f"{name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AlreadyRunningError(f"{name}: process {holder} runs it already; wait for it or stop it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
