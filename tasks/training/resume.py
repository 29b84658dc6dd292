"""The state of training, kept where DVC does not look, so that a rerun after a kill goes on from the last saved step.

DVC removes a stage's outputs before it runs, and keeping them (`persist`) would let a model trained on old inputs pass
for a new one. So the state lives in artifacts/.resume/<stage>/<fingerprint>/, and the fingerprint covers everything
that the result depends on: change any of it and training starts at step 0. The last state stays when training has
ended: DVC makes its record after that, and a kill in between would have the stage train again from nothing.
"""

import hashlib
import io
import mmap
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from model.device import pick_device
from model.distributed import rank
from model.errors import is_of_environment
from model.files import DIGEST_LENGTH, digest_of, set_aside, whole_file, write_whole
from tasks.run import Section, code_version, paths

FINISHED = "finished"
MOST_STOPPED = 3  # runs of a stage, cancelled or killed, that may go on when another has ended


class ResumePoint:
    """The saved state of one training run. Of several ranks, the first writes and all read."""

    def __init__(self, stage: str, fingerprint: str):
        self.stage = stage
        self.directory = paths.RESUME / stage / fingerprint
        self._file = self.directory / "state.pt"
        self._previous = self.directory / "previous.pt"

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """What save() wrote last; the time before, where that is damaged; None where there is nothing whole."""
        state = self._read(self._file, "state", device)
        return self._read(self._previous, "state", device) if state is None else state

    def save(self, state: dict[str, Any]) -> None:
        if rank() == 0:
            self._write(self._file, "state", state, previous=self._previous)

    def remember(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What make() gives, made once and read from then on, however often the run is interrupted."""
        file = self.directory / f"{name}.pt"
        known = self._read(file, name, torch.device("cpu"))
        if known is not None:
            return known
        made = make()
        if rank() == 0:
            self._write(file, name, made)
        return made

    def finish(self) -> None:
        """Keep of this run what its result can be written from again; of others of the stage, the last stopped ones."""
        for file in self.directory.iterdir():
            if file == self._previous or file.suffix != ".pt":  # damaged, or cut short by a kill
                file.unlink()
        write_whole(self.directory / FINISHED, "")
        others = [run for run in self.directory.parent.iterdir() if run != self.directory]
        stopped = [run for run in others if not (run / FINISHED).exists()]
        kept = sorted(stopped, key=lambda run: run.stat().st_mtime)[-MOST_STOPPED:]
        for run in others:
            if run not in kept:
                rmtree(run, ignore_errors=True)

    def _write(self, file: Path, name: str, content: Any, *, previous: Path | None = None) -> None:
        """Content, then its digest. In memory first, because torch reports a full disk as a RuntimeError of its own."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        digest = self._digest(name, buffer.getbuffer())
        with whole_file(file, previous=previous) as partial, partial.open("wb") as written:
            written.write(buffer.getbuffer())
            written.write(digest.encode())

    def _read(self, file: Path, name: str, device: torch.device) -> Any:
        """What _write wrote, or None. A file that is damaged is named and set aside."""
        if not file.exists():
            return None
        try:
            with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                whole = self._is_whole(name, memoryview(content))
        except (OSError, ValueError) as error:  # nothing can be mapped of an empty file
            if is_of_environment(error) and not isinstance(error, PermissionError):
                raise
            whole = False
        if not whole:
            if rank() == 0:
                aside = set_aside(file)
                print(f"{file} is damaged and set aside as {aside.name}; going on without it", file=sys.stderr)
            return None
        return torch.load(file, map_location=device, weights_only=True)

    def _is_whole(self, name: str, file: memoryview) -> bool:
        with file, file[:-DIGEST_LENGTH] as content, file[-DIGEST_LENGTH:] as digest:
            return self._digest(name, content).encode() == digest

    def _digest(self, name: str, content: memoryview) -> str:
        """It is of this run: another's state has another digest."""
        return digest_of([*self.directory.parts[-2:], name, content])


def fingerprint(stage: str, sections: Iterable[Section], shapes: str, inputs: Iterable[Path]) -> str:
    """Of parameters, the digest of the shapes, input files, the stage's code, torch's version, the kind of device."""
    digest = hashlib.sha256(f"{torch.__version__} {pick_device().type} {code_version(stage)} {shapes}".encode())
    for section in sections:
        digest.update(section.model_dump_json().encode())
    for path in sorted(inputs):
        digest.update(f"\n{path.name}\n".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
