"""What a batch could not use: each listed on stderr as it happens, all counted in the last line."""

import sys

from tqdm import tqdm

from ..errors import printable

_LONGEST = 1000  # characters: a line may quote what a file holds


def say(line: str) -> None:
    """On stderr, above the progress bar where there is one."""
    tqdm.write(printable(line), file=sys.stderr)


class Rejects:
    def __init__(self) -> None:
        self.num = 0

    def add(self, failure: str) -> None:
        self.num += 1
        say(f"rejected {failure if len(failure) < _LONGEST else f'{failure[:_LONGEST]}...'}")

    def conclude(self, done: str) -> None:
        """The last line on stderr: what was done, and that some were not, if so."""
        print(f"{done}; {self.num} could not be used, listed above" if self.num else done, file=sys.stderr)
