"""How every stage starts and ends: settings in, one clear sentence and an exit code out."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from model.errors import INTERRUPTED, InputError, hear_interrupts, is_of_environment, printable, told_of_environment
from model.files import write_whole
from tasks.run.paths import METRICS, RESUME
from tasks.run.settings import ParameterError, Settings, load_settings

ALREADY_RUNNING = 75  # EX_TEMPFAIL of sysexits.h: try again later
REFUSED = 3


class RefusedError(InputError):
    """A stage did its work, and what it judged is not good enough to go on with."""


class AlreadyRunningError(RuntimeError):
    """Another process runs the same, in this checkout."""


def run_stage(name: str, stage: Callable[[Settings], None]) -> None:
    """Run one stage and exit: 0 done, 1 with the reason in one sentence, 3 refused with one, 130 interrupted."""
    hear_interrupts()
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started: it holds the lock for all
    try:
        with only_one(name) if first else nullcontext():
            stage(load_settings())
    except AlreadyRunningError as error:
        print(error, file=sys.stderr)
        sys.exit(ALREADY_RUNNING)
    except RefusedError as error:
        print(printable(f"{name}: {error}"), file=sys.stderr)
        sys.exit(REFUSED)
    except (InputError, ParameterError) as error:
        sys.exit(printable(f"{name}: {error}"))
    except Exception as error:
        if not (isinstance(error, OSError) or is_of_environment(error)):
            raise
        told = told_of_environment(error)
        sys.exit(printable(f"{name}: {told}; nothing is half-written, and no input is at fault: run the stage again"))
    except KeyboardInterrupt:
        print(
            f"{name}: interrupted; nothing is half-written, and the next run goes on from what was saved",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)


def write_metrics(stage: str, figures: Mapping[str, Any]) -> None:
    """What the stage leaves in metrics/, for `dvc metrics` and for people."""
    write_whole(METRICS / f"{stage}.json", json.dumps(figures, indent=2) + "\n")


@contextmanager
def only_one(stage: str) -> Iterator[None]:
    """Hold the stage's lock. Raises AlreadyRunningError where another process has it, as after DVC alone was killed."""
    RESUME.mkdir(parents=True, exist_ok=True)
    with (RESUME / f"{stage}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise AlreadyRunningError(f"{stage}: process {holder} runs it already; wait for it or stop it") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
