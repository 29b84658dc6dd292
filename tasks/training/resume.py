"""Unfinished training, kept where DVC does not look, so that a rerun after a kill goes on from the last saved step.

DVC removes a stage's outputs before it runs, and keeping them (`persist`) would let a model trained on old inputs pass
for a new one. So the state lives in artifacts/.resume/<stage>/<fingerprint>/, and the fingerprint covers everything
that the result depends on: change any of it and training starts at step 0.
"""

import hashlib
import io
import pickle
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from model.device import pick_device
from model.distributed import rank
from model.files import write_whole
from tasks.run import RESUME, Section, code_version


class ResumePoint:
    """The saved state of one training run. Of several ranks, the first writes and all read."""

    def __init__(self, stage: str, fingerprint: str):
        self.directory = RESUME / stage / fingerprint
        self._file = self.directory / "state.pt"

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What save() wrote last, or None where there is nothing, or nothing whole."""
        return _read(self._file, device)

    def save(self, state: dict[str, Any]) -> None:
        if rank() == 0:
            write_whole(self._file, _serialised(state))

    def remember(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What make() gives, made once and read from then on, however often the run is interrupted."""
        file = self.directory / f"{name}.pt"
        known = _read(file, torch.device("cpu"))
        if known is not None:
            return known
        made = make()
        if rank() == 0:
            write_whole(file, _serialised(made))
        return made

    def clear(self) -> None:
        """Forget this run, and older ones of the same stage: their result is written."""
        rmtree(self.directory.parent, ignore_errors=True)


def _read(file: Path, device: torch.device) -> Any:
    if not file.exists():
        return None
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        print(f"{file} is damaged ({error}); it is made again from the start", file=sys.stderr)
        return None


def _serialised(content: Any) -> bytes:
    """As bytes, because torch reports a full disk as a RuntimeError of its own."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def fingerprint(stage: str, sections: Iterable[Section], inputs: Iterable[Path]) -> str:
    """Of parameters, input files, the stage's code, the version of torch and the kind of device."""
    digest = hashlib.sha256(f"{torch.__version__} {pick_device().type} {code_version(stage)}".encode())
    for section in sections:
        digest.update(section.model_dump_json().encode())
    for path in sorted(inputs):
        digest.update(f"\n{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
