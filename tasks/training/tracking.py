"""Rows of a history as TensorBoard, DVCLive, Weights & Biases and Trackio show them, each by its own writer."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from model.distributed import rank
from tasks.run import Tracking, paths

PROJECT = "shape-tokenizer"

Row = Mapping[str, float]  # what is in one of a history, by column
Send = Callable[[Row], None]


class Run(NamedTuple):
    """One training, resumed or not."""

    name: str  # another where parameters, inputs or code are
    folder: Path  # of its own, for what is kept on this machine
    step: int  # it goes on from there


def tracker(tracking: Tracking | None, stage: str, fingerprint: str, step: int) -> AbstractContextManager[Send]:
    """What sends rows where the parameters say, and nothing where they name no writer, and from ranks but the first.

    Below DVC's root, which an experiment in a copy of the checkout leaves behind when it ends.
    """
    if tracking is None or tracking.writer is None or rank() > 0:
        return nullcontext(lambda _: None)
    name = f"{stage}-{fingerprint[:8]}"
    folder = Path(os.environ.get("DVC_ROOT", "."), paths.TRACKING, tracking.writer, name)
    folder.mkdir(parents=True, exist_ok=True)
    return WRITERS[tracking.writer](Run(name, folder, step))


@contextmanager
def _tensorboard(run: Run) -> Iterator[Send]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run.folder, purge_step=run.step + 1) as writer:

        def send(row: Row) -> None:
            for name, value in _columns(row).items():
                writer.add_scalar(name, value, int(row["step"]))

        yield send


@contextmanager
def _dvclive(run: Run) -> Iterator[Send]:
    from dvclive import Live

    with Live(str(run.folder), resume=run.step > 0, report=None, save_dvc_exp=False, dvcyaml=None) as live:

        def send(row: Row) -> None:
            live.step = int(row["step"])
            for name, value in _columns(row).items():
                live.log_metric(name, value)
            live.make_summary()

        yield send


@contextmanager
def _wandb(run: Run) -> Iterator[Send]:
    import wandb

    with wandb.init(project=PROJECT, id=run.name, name=run.name, dir=run.folder, resume="allow") as opened:
        yield lambda row: opened.log(_columns(row), step=int(row["step"]))


@contextmanager
def _trackio(run: Run) -> Iterator[Send]:
    import trackio

    opened = trackio.init(project=PROJECT, name=run.name, resume="allow")
    try:
        yield lambda row: opened.log(_columns(row), step=int(row["step"]))
    finally:
        opened.finish()


WRITERS: dict[str, Callable[[Run], AbstractContextManager[Send]]] = {
    "tensorboard": _tensorboard,
    "dvclive": _dvclive,
    "wandb": _wandb,
    "trackio": _trackio,
}


def _columns(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "step"}
