"""What goes wrong by the user's hand, how a user's names are told, and being interrupted."""

import errno
import signal
import unicodedata
from pathlib import Path

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, got, expected, do this."""


def hear_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt also where the caller ignores it, as nohup and a shell's background jobs do.

    Python leaves it ignored then, here and in all that is started from here: nothing could be stopped gently.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def printable(text: Path | str) -> str:
    """As one line that every terminal, table and log takes: line breaks, control codes and bytes that are no text
    stand as their escapes, as in `\\n`, `\\x1b` and `\\udcff`."""
    return "".join(letter if _is_harmless(letter) else letter.encode("unicode_escape").decode() for letter in str(text))


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"  # the space of other scripts


_ENVIRONMENT = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),  # nowhere to write
    *(errno.EROFS, errno.EACCES, errno.EPERM),  # not allowed to
    *(errno.EMFILE, errno.ENFILE),  # too many open files
)


def is_of_environment(error: BaseException) -> bool:
    """Whether the machine is at fault, not an input: its disk is full or read-only, or it allows no more files."""
    return isinstance(error, OSError) and error.errno in _ENVIRONMENT
