"""Waiting for what other processes do, however slowly: a machine may be busy with other things."""

import time
from collections.abc import Callable

SECONDS = 300.0  # after which something hangs


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s"
        time.sleep(0.02)
