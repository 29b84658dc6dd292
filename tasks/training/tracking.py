"""Rows of a history as TensorBoard, DVCLive, Weights & Biases and Trackio show them, each by its own writer."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

from model.distributed import rank
from tasks.run import Tracking, paths

PROJECT = "shape-tokenizer"

Log = Callable[[dict[str, float], int], object]  # figures by name, and the step that they are of


class Run(NamedTuple):
    """One training, resumed or not."""

    name: str  # another where parameters, inputs or code are
    folder: Path  # of its own, for what is kept on this machine
    step: int  # it goes on from there


Row = Mapping[str, float]


@contextmanager
def tracker(
    tracking: Tracking | None, stage: str, fingerprint: str, step: int, unsent: Iterable[Row]
) -> Iterator[Callable[[Row], object]]:
    """What sends rows where the parameters say, those of before first; nothing where they name no writer, and from
    ranks but the first.

    Below DVC's root, which an experiment in a copy of the checkout leaves behind when it ends.
    """
    if tracking is None or tracking.writer is None or rank() > 0:
        yield lambda _: None
        return
    name = f"{stage}-{fingerprint[:8]}"
    folder = Path(os.environ.get("DVC_ROOT", "."), paths.TRACKING, tracking.writer, name)
    folder.mkdir(parents=True, exist_ok=True)
    with WRITERS[tracking.writer](Run(name, folder, step)) as log:

        def send(row: Row) -> None:
            log({name: value for name, value in row.items() if name != "step"}, int(row["step"]))

        for row in unsent:
            send(row)
        yield send


@contextmanager
def _tensorboard(run: Run) -> Iterator[Log]:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run.folder, purge_step=run.step + 1) as writer:

        def log(figures: dict[str, float], step: int) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        yield log


@contextmanager
def _dvclive(run: Run) -> Iterator[Log]:
    from dvclive import Live

    with Live(str(run.folder), resume=run.step > 0, report=None, save_dvc_exp=False, dvcyaml=None) as live:

        def log(figures: dict[str, float], step: int) -> None:
            live.step = step
            for name, value in figures.items():
                live.log_metric(name, value)
            live.make_summary()

        yield log


@contextmanager
def _wandb(run: Run) -> Iterator[Log]:
    import wandb

    with wandb.init(project=PROJECT, id=run.name, name=run.name, dir=run.folder, resume="allow") as opened:
        yield opened.log


@contextmanager
def _trackio(run: Run) -> Iterator[Log]:
    import trackio

    opened = trackio.init(project=PROJECT, name=run.name, resume="allow")
    try:
        yield opened.log
    finally:
        opened.finish()


WRITERS: dict[str, Callable[[Run], AbstractContextManager[Log]]] = {
    "tensorboard": _tensorboard,
    "dvclive": _dvclive,
    "wandb": _wandb,
    "trackio": _trackio,
}
