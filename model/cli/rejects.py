"""What a batch could not use: each listed on stderr as it happens, all counted in the last line."""

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import printable
from ..files import write_whole

_LONGEST = 1000  # characters: a line may quote what a file holds


def say(line: str) -> None:
    """On stderr, above the progress bar where there is one."""
    tqdm.write(printable(line), file=sys.stderr)


class Rejects:
    def __init__(self) -> None:
        self._rows: list[tuple[str, str]] = []

    @property
    def num(self) -> int:
        return len(self._rows)

    def add(self, place: Path | str, reason: str) -> None:
        failure = f"{place}: {reason}"
        say(f"rejected {failure if len(failure) < _LONGEST else f'{failure[:_LONGEST]}...'}")
        self._rows.append((printable(place), printable(reason)))

    def write(self, path: Path) -> None:
        """A table of all of them, also where there are none: it replaces that of an earlier run."""
        write_csv(path, ("file", "reason"), self._rows)

    def conclude(self, done: str) -> None:
        """The last line on stderr: what was done, and that some were not, if so."""
        print(f"{done}; {self.num} could not be used, listed above" if self.num else done, file=sys.stderr)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_whole(path, text.getvalue())
