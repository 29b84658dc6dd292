"""What goes wrong by the user's hand or for want of the machine, how it is told, and being interrupted."""

import atexit
import errno
import gc
import os
import signal
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, got, expected, do this."""


def hear_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt also where the caller ignores it, as nohup and a shell's background jobs do.

    Python leaves it ignored then, here and in all that is started from here: nothing could be stopped gently.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def skip_last_collection() -> None:
    """Let this process end without Python's last search for cycles, 1.5 s of CPU where torch and Warp are imported."""
    atexit.register(gc.freeze)


def printable(text: Path | str) -> str:
    """As one line that every terminal, table and log takes: line breaks, control codes and bytes that are no text
    stand as their escapes, as in `\\n`, `\\x1b` and `\\udcff`."""
    return "".join(letter if _is_harmless(letter) else letter.encode("unicode_escape").decode() for letter in str(text))


def some_of(names: Sequence[str], most: int = 10, *, separator: str = ", ") -> str:
    """The first of them, and how many more there are: a message about a batch of hundreds stays one sentence."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return separator.join([*names[:most], *more])


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"  # the space of other scripts


# What the machine may be short of, and what its user can do about it.
_MEMORY = {errno.ENOMEM: "end other programs, or take a machine with more memory"}
_DISK = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
}
_RIGHTS = {
    errno.EACCES: "change its permissions or name another folder",
    errno.EPERM: "change its permissions or name another folder",
    errno.EROFS: "make it writable or name another folder",
}
_HANDLES = {errno.EMFILE: "allow more (ulimit -n)", errno.ENFILE: "close other programs"}
_REMEDIES = _MEMORY | _DISK | _RIGHTS | _HANDLES

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # how torch says it


def is_of_environment(error: BaseException, *, given: Path | None = None) -> bool:
    """Whether the machine is at fault, not an input and not this program: its disk is full or read-only, or it allows
    no more files or memory.

    That `given`, a file which the user named to be read, may not be read is that file's own fault.
    """
    if given is not None and isinstance(error, PermissionError) and error.filename == str(given):
        return False
    return _number_of(error) in _REMEDIES


def _number_of(error: BaseException) -> int | None:
    """The system's number of an error, also where the library that met it tells it in words only."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, (OSError, RuntimeError)) or type(error).__name__ == "SafetensorError":
        words = {os.strerror(number): number for number in _REMEDIES} | dict.fromkeys(_NO_MEMORY, errno.ENOMEM)
        return next((number for part, number in words.items() if part in str(error)), None)
    return None


def told_of_environment(error: BaseException) -> str:
    """What the machine is short of, where, and what to do, as one sentence."""
    number, file = _number_of(error), getattr(error, "filename", None)
    what = os.strerror(number) if number in _REMEDIES else getattr(error, "strerror", None) or str(error)
    if file is None and number in _DISK:  # the library that wrote may not say which file
        file = _fullest_disk()
    elif file is None and number in _REMEDIES:
        what = f"{what} ({' '.join(str(error).split())[:200] or 'how much was asked for is not known'})"
    remedy = _REMEDIES.get(number or 0, "check that path" if file else "mend it")
    return f"{what}{f': {file}' if file else ''}; {remedy}"


def sentence_of(error: Exception, *, again: str) -> str | None:
    """What a user is told of an error that ended a program, which is to be run `again` where the machine is at fault.

    None for a fault of ours, which keeps its traceback.
    """
    if isinstance(error, InputError):
        return printable(str(error))
    if isinstance(error, OSError) or is_of_environment(error):
        told = f"{told_of_environment(error)}; nothing is half-written, and no input is at fault: run the {again} again"
        return printable(told)
    return None


def reason_of(error: Exception, *, given: Path, more_memory: str) -> str:
    """Why the file `given` can't be read and worked on, as one sentence; it is one of many and need not end them.

    Raises the error again where the machine is at fault, which would be every file's reason. This is for a process
    that may have so much memory for the file and no more: `more_memory` says what to do where that is too little.
    """
    if isinstance(error, InputError):
        return str(error)
    if _number_of(error) == errno.ENOMEM:
        return f"there was not enough memory for it; {more_memory}"
    if is_of_environment(error, given=given):
        raise error
    if isinstance(error, OSError):
        return f"the file can't be opened ({error.strerror}); check its permissions"
    return fault_of_ours(error)


@contextmanager
def reading(file: Path, remedy: str, *, kind: type[InputError] = InputError) -> Iterator[None]:
    """Within it, whatever a missing or damaged file makes of its reader becomes one sentence, which ends in the remedy.

    An InputError is raised as it is, and so is what the machine is at fault for.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or is_of_environment(error):
            raise
        if not file.is_file():
            raise kind(f"{file} does not exist; {remedy}") from error
        raise kind(f"{file} can't be read ({type(error).__name__}: {first_line(error)}); {remedy}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without what some libraries say below it."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__


def fault_of_ours(error: Exception) -> str:
    """What nobody thought of, as one sentence."""
    what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"working on it failed ({what}); this is a fault of ours, please report it"


def _fullest_disk() -> str:
    """Of those that this program and its libraries write to: results, temporary files, compiled kernels."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [Path(), Path(os.environ.get("TMPDIR") or "/tmp"), Path(os.environ.get("WARP_CACHE_PATH") or home)]
    return f"the disk of {min((f.absolute() for f in folders if f.exists()), key=lambda f: disk_usage(f).free)}"
