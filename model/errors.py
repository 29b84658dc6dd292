"""What goes wrong by the user's hand, how a user's names are told, and the exit code of who was interrupted."""

import unicodedata
from pathlib import Path

INTERRUPTED = 130  # what a shell reports for Ctrl-C


class InputError(ValueError):
    """Something the user gave cannot be used. The message is one sentence: what, got, expected, do this."""


def printable(text: Path | str) -> str:
    """As one line that every terminal, table and log takes: line breaks, control codes and bytes that are no text
    stand as their escapes, as in `\\n`, `\\x1b` and `\\udcff`."""
    return "".join(letter if _is_harmless(letter) else letter.encode("unicode_escape").decode() for letter in str(text))


def _is_harmless(letter: str) -> bool:
    return letter.isprintable() or unicodedata.category(letter) == "Zs"  # the space of other scripts
