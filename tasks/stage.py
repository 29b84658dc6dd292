"""How every stage starts and ends: settings in, one clear sentence and an exit code out."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from model.errors import InputError
from tasks.settings import ParameterError, Settings, load_settings

INTERRUPTED = 130  # what a shell reports for Ctrl-C


def run_stage(name: str, stage: Callable[[Settings], None]) -> None:
    """Run one stage and exit: 0 done, 1 with the reason in one sentence, 130 interrupted."""
    try:
        stage(load_settings())
    except (InputError, ParameterError) as error:
        sys.exit(f"{name}: {error}")
    except OSError as error:
        sys.exit(f"{name}: {error.strerror or error}: {error.filename or 'no file named'}; no output was written")
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what was finished is kept and the next run goes on from it", file=sys.stderr)
        sys.exit(INTERRUPTED)


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


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
