"""Files and folders that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that appears at `path` when the block ends well, and not at all when it does not."""
    partial = path.with_name(f".{path.name}.partial")
    rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    finally:
        rmtree(partial, ignore_errors=True)


def partial_name(path: Path) -> Path:
    """Where to write first what os.replace then moves to `path`: beside it, and no other process's."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
