"""What a machine can be short of, for real: room on a disk, the right to write, files that may be open."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def _mount(*arguments: str | Path) -> bool:
    """Whether it was allowed."""
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own at an empty folder, where mounting is allowed."""
    mounted = _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    try:
        yield
    finally:
        if mounted:
            _unmount(folder)


@contextmanager
def full(folder: Path, *, room: int = 8192) -> Iterator[None]:
    """A small_disk has so many bytes left; where there could be none, no file may be longer than that."""
    if not folder.is_mount():
        with limit(resource.RLIMIT_FSIZE, room):  # Python ignores SIGXFSZ, so writing fails
            yield
        return
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - room))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written there, by root neither. Skips the test where root may not mount."""
    if os.geteuid():
        mode = folder.stat().st_mode
        folder.chmod(0o555)
        try:
            yield
        finally:
            folder.chmod(mode)
        return
    if not (_mount("--bind", folder, folder) and _mount("-o", "remount,bind,ro", folder)):
        pytest.skip("nothing is read-only for root where it may not mount")
    try:
        yield
    finally:
        _unmount(folder)


@contextmanager
def limit(kind: int, value: int) -> Iterator[None]:
    """A limit of this process and of those that it starts."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def open_files(more: int) -> Iterator[None]:
    """So many can be opened."""
    handles = [os.dup(0) for _ in range(more + 1)]
    for handle in handles:
        os.close(handle)
    with limit(resource.RLIMIT_NOFILE, handles[-1]):
        yield


def left_over(folder: Path) -> list[Path]:
    """What was begun and is not whole."""
    return [path for path in folder.rglob("*") if "partial" in path.name or path.name.endswith(".old")]
