"""How long work shows itself: a bar on a terminal, a plain line now and then where the output is piped."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TypeVar

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0

Item = TypeVar("Item")


class Progress:
    """Counts units of work that end one after the other; a context manager, so that the bar is closed."""

    def __init__(self, total: int, *, description: str, unit: str, done: int = 0):
        self._total, self._done, self._first = total, done, done
        self._description, self._unit = description, unit
        self._started = self._printed = time.monotonic()
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=description, unit=unit) if on_terminal else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, note: str = "") -> None:
        """One more is done. `note` stands behind the bar until another replaces it."""
        self._done += 1
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._printed >= SECONDS_BETWEEN_LINES or self._done == self._total:
            rate = (self._done - self._first) / (now - self._started)
            left = (self._total - self._done) / rate
            line = f"{self._description}: {self._done} of {self._total} {self._unit}s, {rate:.3g} a second"
            print(f"{line}, {left:.0f} s left {note}".rstrip(), file=sys.stderr, flush=True)
            self._printed = now


def track(items: Iterable[Item], total: int, *, description: str, unit: str) -> Iterator[Item]:
    """The items, shown as progress as they are used. Of several processes that share work, the first shows its own."""
    if os.environ.get("RANK", "0") != "0":  # as torchrun sets it
        yield from items
        return
    with Progress(total, description=description, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()
