"""A stage on all GPUs, of several machines too: torch's elastic launcher starts a process on each; they end as one."""

import ctypes
import json
import logging
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from model.errors import INTERRUPTED, InputError
from model.files import write_whole
from tasks.run.settings import Settings

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

LIMIT = "SHAPE_TOKENIZER_PROCESSES"
LAUNCHER = "SHAPE_TOKENIZER_LAUNCHER"  # the process id of the launcher, for those that it started
NODES, MEETING, RUN_ID = "PET_NNODES", "PET_RDZV_ENDPOINT", "PET_RDZV_ID"  # torchrun's, where it is not told otherwise
SECONDS_TO_SAVE = 600  # after which processes that were told to stop are killed
PR_SET_PDEATHSIG = 1

# The stages that can share their work (in_process_group), and among how many: in training each needs a shape of every
# batch, or a vector; elsewhere one may have nothing to do. Not with their code, which is a dependency of DVC's, because
# no result depends on it.
MOST_PROCESSES: dict[str, Callable[[Settings], int]] = {
    "pretrain_vae": lambda settings: settings.pretrain_vae.shapes_at_least,
    "encode": lambda _: sys.maxsize,
    "stage1": lambda settings: settings.stage1.batch_size,
    "stage2": lambda settings: settings.stage2.shapes_at_least,
    "twin": lambda settings: settings.stage2.shapes_at_least,
    "evaluate": lambda _: sys.maxsize,
}


class End(NamedTuple):
    """How a stage ended that did not end well."""

    code: int
    reason: str  # one sentence, or the traceback of a fault of ours
    is_fault: bool = False


def num_processes(stage: str, settings: Settings) -> int:
    """How many processes are to share a stage's work: one per GPU or, without any, one.

    The environment's SHAPE_TOKENIZER_PROCESSES makes them fewer or, without GPUs, so many. It is 1 in a process that
    torchrun or this module started, and for a stage that can't share. Raises InputError.
    """
    if "RANK" in os.environ or stage not in MOST_PROCESSES:
        return 1
    import torch

    most = MOST_PROCESSES[stage](settings)
    num_gpus = torch.cuda.device_count()
    limit = os.environ.get(LIMIT, str(num_gpus or 1))
    if not limit.isdecimal() or int(limit) == 0:
        raise InputError(f"{LIMIT} is {limit!r}; it takes a number of processes, 1 or more: set that or unset it")
    wanted = min(int(limit), num_gpus or int(limit))
    if wanted > most:
        print(f"{most} of {wanted} processes work on {stage}: a batch may have no more to share", file=sys.stderr)
    return min(wanted, most)


def num_nodes(stage: str) -> int:
    """How many machines the stage is started on at the same time, one unless torchrun's own variables say otherwise.

    It is 1 in a process that torchrun or this module started, and for a stage that can't share. Raises InputError.
    """
    nodes = os.environ.get(NODES, "1")
    if "RANK" in os.environ or stage not in MOST_PROCESSES or nodes == "1":
        return 1
    if not nodes.isdecimal() or int(nodes) == 0 or not {MEETING, RUN_ID} <= os.environ.keys():
        raise InputError(
            f"{NODES} is {nodes!r}; it takes a number of machines, 1 or more, and with more {MEETING}, the HOST:PORT "
            f"of one of them, and {RUN_ID}, the same on all"
        )
    return int(nodes)


def launch(stage: str, number: int, nodes: int) -> End | None:
    """Run this process's own command in so many processes, on each of so many machines; None where all ended well.

    Raises KeyboardInterrupt when SIGINT or SIGTERM asked to stop, after they have saved.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_SAVE))  # torch 2.11 does not know it: 30 s
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // number)))
    logging.disable(logging.ERROR)  # how they ended is told below, once
    with TemporaryDirectory() as scratch:
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=number,
            max_restarts=0,  # whoever started the stage knows what to do
            run_id=uuid.uuid4().hex if nodes == 1 else os.environ[RUN_ID],
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0" if nodes == 1 else os.environ[MEETING],
            local_addr="localhost" if nodes == 1 else None,  # a machine alone need not know its own name
            logs_specs=DefaultLogsSpecs(log_dir=scratch),
            signals_to_handle="SIGINT,SIGTERM",  # not SIGHUP, which nohup ignores
        )
        try:
            elastic_launch(config, sys.executable)(*sys.orig_argv[1:])
        except ChildFailedError as error:
            return _first_cause(stage, _told(Path(scratch)), error.failures, number * nodes)
        except SignalException:
            failed = [end for end in _told(Path(scratch)) if end.code != INTERRUPTED]
            if failed:
                return failed[0]
            raise KeyboardInterrupt from None
    return None


def _told(scratch: Path) -> list[End]:
    """What the processes handed over, the first first."""
    told = [json.loads(file.read_text()) for file in scratch.rglob("error.json")]
    return [End(*entry["end"]) for entry in sorted(told, key=lambda entry: entry["timestamp"])]


def _first_cause(stage: str, told: list[End], failures: "Mapping[int, ProcessFailure]", number: int) -> End:
    """Of several ends the one that led to the others: whoever loses another process fails, or is told to stop."""
    killed: list[End] = []
    stopped: list[End] = []
    for rank, failure in failures.items():
        if failure.exitcode < 0:
            reason = (
                f"{stage}: process {rank + 1} of {number} was killed by signal {-failure.exitcode}; where nobody did "
                "that, the machine was out of memory; the next run goes on from what was saved"
            )
            (stopped if failure.exitcode == -signal.SIGTERM else killed).append(End(128 - failure.exitcode, reason))
    ends = [
        *(end for end in told if not end.is_fault and end.code != INTERRUPTED),
        *killed,
        *(end for end in told if end.is_fault),
        *(end for end in told if end.code == INTERRUPTED),
        *stopped,
    ]
    return ends[0] if ends else End(1, f"{stage}: one of {number} processes ended; what it said stands above")


def is_launched() -> bool:
    return LAUNCHER in os.environ and "RANK" in os.environ


def stop_with_launcher() -> None:
    """Have the kernel send this process SIGTERM, on which training saves, when its launcher is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(os.environ[LAUNCHER]):
        sys.exit(INTERRUPTED)


def hand_over(end: End) -> None:
    """Let the launcher tell how this process ended. It expects a message and a time in the file that it names."""
    entry = {"message": end.reason, "timestamp": time.time(), "end": end}
    try:
        write_whole(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), json.dumps(entry))
    except OSError:  # the disk may be full
        print(end.reason, file=sys.stderr)
