"""Run a command that never outlives whoever asked for it: `python flows/keeper.py [--patience SECONDS] COMMAND...`.

Standard input is the leash. When it closes, because the caller wants the command to end or because the caller was
killed, the command and every process it started are told to stop: SIGINT, on which a trainer saves its state, then,
after as many seconds as the patience, SIGTERM, then SIGKILL. The same happens to what is left over when the command
itself was killed; where the keeper is killed, the kernel sends SIGTERM to the command. Exits with the command's exit
code, 128 + N where signal N ended it. Nothing but the standard library, so that it starts at once.
"""

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

# Together less than the 30 s after which Prefect's worker kills a run that it cancels.
PATIENCE = {signal.SIGINT: 20.0, signal.SIGTERM: 5.0, signal.SIGKILL: 2.0}  # seconds
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
KERNEL = ctypes.CDLL(None)


def keep(command: list[str]) -> int:
    # What loses its parent becomes ours, so that we can wait for it; an init that reaps may be missing in a container.
    KERNEL.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    told_to_stop: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Also where the caller ignores SIGINT, as a shell's background jobs do: else the command would ignore it too.
        signal.signal(number, lambda number, _: told_to_stop.append(number))
    keeper = os.getpid()
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _die_with(keeper),  # noqa: PLW1509 - no thread but this one
    )
    while child.poll() is None and not told_to_stop and not _leash_is_cut():
        pass
    for number, patience in PATIENCE.items():
        if _is_gone(child):
            break
        os.killpg(child.pid, number)
        deadline = time.monotonic() + patience
        while not _is_gone(child) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
    code = child.wait()
    return 128 - code if code < 0 else code


def _die_with(keeper: int) -> None:
    KERNEL.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != keeper:  # it was killed before the kernel knew
        os._exit(1)


def _leash_is_cut() -> bool:
    """Whether standard input has ended; waits for it for POLL_SECONDS."""
    readable, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(readable) and not os.read(sys.stdin.fileno(), 1)


def _is_gone(child: subprocess.Popen[bytes]) -> bool:
    """Whether the command and all processes of its group have ended."""
    if child.poll() is None:
        return False
    try:
        while os.waitpid(-child.pid, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patience", type=float, default=PATIENCE[signal.SIGINT])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    PATIENCE[signal.SIGINT] = arguments.patience
    sys.exit(keep(arguments.command))
