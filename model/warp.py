"""Warp, set up once and without a word: all modules with kernels for it import `wp` from here."""

import ctypes
import os
from contextlib import suppress

import warp as wp

__all__ = ["QUICK_TO_COMPILE", "wp"]

# Options of every module with kernels here; not Warp's configuration, which is the user's. No code for gradients, which
# nobody takes, and no loop of eight voxels written out eight times: both is most of what there would be to compile.
QUICK_TO_COMPILE = {"enable_backward": False, "max_unroll": 4}

NO_DRIVER = b"Warp CUDA warning: Could not find or load the NVIDIA CUDA driver."


def _driver_exists() -> bool:
    for name in ("libcuda.so", "libcuda.so.1"):  # where Warp looks for it
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def _start_without_driver() -> None:
    """Start Warp, and take from what it writes to stderr that there is no GPU, which nobody asked for.

    Its native part writes that whatever the log level. All else is passed on.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # closed: nothing can be seen there
        return
    with os.fdopen(os.memfd_create("stderr"), "w+b") as written:  # needs no disk, which may be full
        os.dup2(written.fileno(), 2)
        try:
            with suppress(OSError):  # no cache can be made: whoever uses Warp begins with this again, and can say so
                wp.init()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            os.write(2, b"".join(line for line in written if not line.startswith(NO_DRIVER)))


wp.config.log_level = wp.LOG_WARNING  # no banner, and no line for every module of kernels
if not _driver_exists():  # else Warp starts when it is first used: not every process that imports this needs the GPU
    _start_without_driver()
