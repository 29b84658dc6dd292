"""Waiting for what other processes do, however slowly: a machine may be busy with other things."""

import time
from collections.abc import Callable

SECONDS = 800.0  # after which something hangs; less than the timeout of a test in pyproject.toml


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {SECONDS:g} s"
        time.sleep(0.02)
