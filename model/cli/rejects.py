"""What a batch could not use: each listed on stderr as it happens, all counted in the last line."""

import sys

from tqdm import tqdm

from ..errors import printable


class Rejects:
    def __init__(self) -> None:
        self.num = 0

    def add(self, failure: str) -> None:
        """Lists it above the progress bar, where there is one."""
        self.num += 1
        tqdm.write(printable(f"rejected {failure}"), file=sys.stderr)

    def conclude(self, done: str) -> None:
        """The last line on stderr: what was done, and that some were not, if so."""
        print(f"{done}; {self.num} could not be used, listed above" if self.num else done, file=sys.stderr)
