"""Everything that leaves the program is written here: whole, on the disk, and under its name only then.

Content that the program reads again carries a digest: it is made and looked for here.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfile, rmtree

DIGEST = "digest"  # the field that carries it, be it of JSON, of Parquet's metadata or of safetensors'
_MARK = "sha256:"  # how a digest begins
_HEX_DIGITS = 32
DIGEST_LENGTH = len(_MARK) + _HEX_DIGITS


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to fill that appears at `path` when the block ends well, and not at all when it does not."""
    partial, old = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.old")
    for left_over in (partial, old):
        rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for made in (*partial.rglob("*"), partial):
            _sync(made)
        if path.exists():
            os.replace(path, old)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        for left_over in (partial, old):
            rmtree(left_over, ignore_errors=True)


@contextmanager
def whole_file(path: Path, *, previous: Path | None = None) -> Iterator[Path]:
    """The path of a file to write, which appears at `path` when the block ends well, and not at all when it does not.

    It lies beside `path` under a name that no other process uses. What was at `path` is then at `previous`, or gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask asks for; safetensors makes files for the owner only
        yield partial
        partial.chmod(mode)
        _sync(partial)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
        _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def copy_whole(source: Path, target: Path) -> None:
    """Write a file with the content of another."""
    with whole_file(target) as partial:
        copyfile(source, partial)


def set_aside(path: Path) -> Path:
    """Give a damaged file another name, for whoever wants to look at it. Returns that name."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    return aside


def _sync(path: Path) -> None:
    """Have it on the disk: a file's content, a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such thing for folders
            raise
    finally:
        os.close(handle)


def digest_of(parts: Iterable[str | bytes | memoryview]) -> str:
    """A hash of these parts and of where one ends and the next begins. Buffers have one dimension."""
    digest = hashlib.sha256()
    for part in parts:
        content = memoryview(part.encode(errors="surrogatepass") if isinstance(part, str) else part)
        digest.update(content.nbytes.to_bytes(8, "little"))
        digest.update(content)
    return _MARK + digest.hexdigest()[:_HEX_DIGITS]


def is_as_written(fields: Mapping[str, object], digest: str, *, required: bool) -> bool:
    """Whether the fields that came with some content carry its digest, or carry none where none is required.

    Damage may be to the field's name as well as to what it holds: either tells that there was one. What others mark
    alike is longer.
    """
    carried = [
        value
        for key, value in fields.items()
        if key == DIGEST or (isinstance(value, str) and value.startswith(_MARK) and len(value) == DIGEST_LENGTH)
    ]
    return carried == [digest] or not (carried or required)
