"""Is there anything on which DVC itself would stop? `python -m tasks.inputs`, which `make repro` and the flow do first.

DVC hashes what a stage depends on before it runs anything: it waits for ever on a named pipe and fails without a name
on a link to nothing, both of which the stage itself would list as rejected. It sees no change behind a link to a
folder, so that results would be stale. It writes its table of locks in place: where a kill cuts that short, every later
run fails on it. And it asks for a git repository, which an unpacked archive is not.
"""

import fcntl
import json
import os
import sys
from pathlib import Path

from model.errors import InputError, printable, some_of
from model.files import write_whole
from model.meshes import irregular_files
from tasks.run import load_settings

DVC_LOCKS = Path(".dvc/tmp/rwlock")  # which process reads and writes what; of interest while it lives only
DVC_SETTINGS = Path(".dvc/config.local")  # of this checkout alone
BEHIND_LINK = "DVC does not see what changes behind a link to a folder; link its files one by one, or copy it"


def prepare_dvc() -> None:
    """Mend what DVC would fail on and can do without. Raises InputError where nothing can be written."""
    _refuse_read_only()
    _mend_locks()
    _do_without_git()


def _refuse_read_only() -> None:
    here = Path.cwd()
    if not os.access(here, os.W_OK):
        raise InputError(
            f"{here} can't be written to, and results, metrics/ and dvc.lock are written into the checkout; "
            f"work in a copy, or git clone {here} ELSEWHERE, with a link to this .venv in it"
        )


def _do_without_git() -> None:
    """Tell DVC so where there is no git repository. Raises InputError where its settings for here are the user's."""
    here = Path.cwd()
    if not DVC_SETTINGS.parent.is_dir() or any((folder / ".git").exists() for folder in (here, *here.parents)):
        return
    if not DVC_SETTINGS.exists():
        write_whole(DVC_SETTINGS, "[core]\n    no_scm = true\n")
        print(f"{here} is no git repository, of which DVC is told in {DVC_SETTINGS}", file=sys.stderr)
    elif "no_scm" not in DVC_SETTINGS.read_text():
        raise InputError(
            f"{here} is no git repository, of which DVC has to be told: .venv/bin/dvc config --local core.no_scm true"
        )


def _mend_locks() -> None:
    """Take DVC's table of locks away where it is cut short and no DVC is at work on it."""
    guard = DVC_LOCKS.with_name(f"{DVC_LOCKS.name}.lock")
    if not (DVC_LOCKS.is_file() and guard.is_file()):
        return
    with guard.open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            json.loads(DVC_LOCKS.read_bytes())
        except BlockingIOError:
            return
        except ValueError:
            DVC_LOCKS.unlink()
            print(f"{DVC_LOCKS} was cut short when DVC was killed; it is made anew", file=sys.stderr)


def check_inputs() -> None:
    """Raise InputError naming what in voxelize.meshes is no file that can be read."""
    folder = load_settings().voxelize.meshes
    links = (
        Path(place, name) for place, names, _ in os.walk(folder) for name in names if Path(place, name).is_symlink()
    )
    found = [f"{printable(path)}: {reason}" for path, reason in irregular_files(folder).items()]
    found += [f"{printable(link)}: {BEHIND_LINK}" for link in sorted(links)]
    if found:
        shown = some_of(found, separator="; ")
        raise InputError(f"DVC can't read {len(found)} of what is in {folder} (voxelize.meshes): {shown}")


if __name__ == "__main__":
    try:
        prepare_dvc()
        check_inputs()
    except InputError as error:
        sys.exit(str(error))
