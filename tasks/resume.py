"""Unfinished training, kept where DVC does not look, so that a rerun after a kill goes on from the last saved step.

DVC removes a stage's outputs before it runs, and keeping them (`persist`) would let a model trained on old inputs pass
for a new one. So the state lives in artifacts/.resume/<stage>/<fingerprint>/, and the fingerprint covers everything
that the result depends on: change any of it and training starts at step 0.
"""

import fcntl
import hashlib
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from tasks.paths import RESUME
from tasks.settings import Section

ALREADY_RUNNING = 75  # EX_TEMPFAIL of sysexits.h: try again later


class ResumePoint:
    """The saved state of one training run."""

    def __init__(self, stage: str, fingerprint: str):
        self.directory = RESUME / stage / fingerprint
        self._file = self.directory / "state.pt"

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What save() wrote last, or None where there is nothing, or nothing whole."""
        if not self._file.exists():
            return None
        try:
            return torch.load(self._file, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            print(f"{self._file} is damaged ({error}); training starts again at step 0", file=sys.stderr)
            return None

    def save(self, state: dict[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._file)

    def clear(self) -> None:
        """Forget this run, and older ones of the same stage: their result is written."""
        rmtree(self.directory.parent, ignore_errors=True)


def fingerprint(sections: Iterable[Section], inputs: Iterable[Path]) -> str:
    """Of parameters, input files and all code of model/ and tasks/."""
    digest = hashlib.sha256()
    for section in sections:
        digest.update(section.model_dump_json().encode())
    code = sorted(path for folder in ("model", "tasks") for path in Path(__file__).parents[1].glob(f"{folder}/**/*.py"))
    for path in [*code, *sorted(inputs)]:
        digest.update(f"\n{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def only_one(stage: str) -> Iterator[None]:
    """Hold the stage's lock; exit with 75 where another process trains it, as after DVC alone was killed."""
    RESUME.mkdir(parents=True, exist_ok=True)
    with (RESUME / f"{stage}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            message = f"{stage}: process {holder} is training this stage already; wait for it or stop it"
            print(message, file=sys.stderr)
            sys.exit(ALREADY_RUNNING)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
