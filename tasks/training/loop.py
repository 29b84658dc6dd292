"""The training loop: one function for pretraining, stage 1 and stage 2."""

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from model.distributed import all_reduce_mean, average_gradients, num_ranks, on_any_rank, rank
from model.errors import InputError, some_of
from model.files import write_whole
from model.progress import Progress
from tasks.run import Tracking, Training, paths
from tasks.training.resume import ResumePoint
from tasks.training.tracking import tracker


class Batch(Protocol):
    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def size(self) -> str:
        """What it asks of the memory, in words."""
        ...

    @property
    def limits(self) -> str:
        """The keys of params.yaml that keep it from asking for more."""
        ...


B = TypeVar("B", bound=Batch)
Losses = dict[str, Tensor]  # scalars; "loss" is what is minimised, all of them go into the history
Validation = Callable[[], dict[str, float]]  # figures of the network as it is
Schedule = Callable[[float], float]  # progress in [0, 1) to a factor of the learning rate


SECONDS = "seconds_"  # how columns begin that depend on the clock
COUNTED = ("revived_codes", "skipped_steps")  # since the last row of the history
# torch would begin at 2^16, where a gradient of 1 overflows: stage 2's largest reach that in its first steps, and one
# was skipped. It doubles every 2 000 steps and halves at every overflow.
FIRST_LOSS_SCALE = 2.0**13
MIN_LOSS_SCALE = 1.0  # where even gradients as they are overflow
MAX_SKIPPED_IN_A_ROW = 13  # so many halve it to that


class DivergenceError(InputError):
    """A loss, or step after step the gradients, became NaN or infinite."""


@dataclass
class History:
    """What was logged, one row for each `log_every` steps, in a TSV that can be plotted while training runs.

    Seconds go into a file of the same name below TIMINGS: the one at `path` must not depend on the clock.
    """

    path: Path
    tracking: Tracking | None = None  # where rows go besides, once each is whole
    rows: list[dict[str, float]] = field(default_factory=list)

    def append(self, row: dict[str, float]) -> None:
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """All rows, by the first rank, once there is one; a column that some rows lack stays empty there."""
        if rank() > 0 or not self.rows:
            return
        table = pd.DataFrame(self.rows).set_index("step")
        timed = table.columns.str.startswith(SECONDS)
        for path, columns in ((self.path, ~timed), (paths.TIMINGS / self.path.name, timed)):
            text = table.loc[:, columns].to_csv(sep="\t", float_format="%.6g", lineterminator="\n")
            write_whole(path, text)


def scales_loss(device: torch.device) -> bool:
    """Where the forward pass is in float16, whose gradients would be lost to its small range."""
    return device.type == "cuda"


def cosine(progress: float) -> float:
    """Loshchilov and Hutter 2017, down to a hundredth."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def train(
    model: nn.Module,
    param_groups: list[dict[str, Any]],
    losses_of: Callable[[B], Losses],
    batches_from: Callable[[int], Iterator[B]],
    *,
    settings: Training,
    section: str,
    resume: ResumePoint,
    history: History,
    validate: Validation | None = None,
    validate_every: int = 0,
    after_step: Callable[[int, torch.optim.Optimizer], Losses] | None = None,
) -> None:
    """Minimise losses_of(batch)["loss"] with AdamW for settings.steps steps.

    param_groups are torch's, each with an optional "schedule" after warm-up (cosine where absent); `section` is what
    params.yaml calls the settings. On CUDA the forward pass runs in float16 with loss scaling. Several ranks
    (model/distributed.py) average their gradients, and the first writes. State is saved every settings.save_every
    steps, at the end, and on SIGINT or SIGTERM, which then raise KeyboardInterrupt. after_step changes what no gradient
    does, after each step, and returns what to log beside the losses. Raises DivergenceError naming the step and its
    samples, and InputError where one does not fit into a GPU's memory; both say what to lower in the section.
    """
    device = next(model.parameters()).device
    on_cuda = device.type == "cuda"
    schedules = [group.pop("schedule", cosine) for group in param_groups]
    optimizer = torch.optim.AdamW(param_groups, lr=settings.lr, weight_decay=settings.weight_decay, fused=on_cuda)
    trained = [parameter for group in param_groups for parameter in group["params"]]
    scheduler = LambdaLR(optimizer, [_with_warmup(schedule, settings) for schedule in schedules])
    scaler = torch.amp.GradScaler(device.type, FIRST_LOSS_SCALE, enabled=scales_loss(device))
    stateful = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    validation_at = partial(_validation_at, validate, validate_every, settings.steps)
    window = _Window(section, scaler)
    step, unsent = _restore(resume, stateful, history, window, device, validation_at)
    batches = islice(batches_from(step), settings.steps - step)

    progress = Progress(settings.steps, description=resume.stage, unit="step", done=step)
    sends = tracker(history.tracking, resume.stage, resume.directory.name, step, unsent)
    with _stop_signals() as stop, progress, sends as send:
        for batch in window.waiting_for(batches):
            if num_ranks() > 1:  # noise of its own on each rank, the same when the run is resumed
                torch.manual_seed((settings.seed * settings.steps + step) * num_ranks() + rank())
            try:
                with torch.autocast(device.type, torch.float16, enabled=on_cuda):
                    losses = losses_of(batch)
                scaler.scale(losses["loss"]).backward()
                average_gradients(trained)  # still scaled: an overflow on one rank is one on all
                scaler.unscale_(optimizer)
                grad_norm = nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
                lr = optimizer.param_groups[0]["lr"]
                scaler.step(optimizer)  # the first makes the optimizer's state
            except torch.OutOfMemoryError as error:
                raise InputError(
                    f"step {step + 1} does not fit into the GPU's memory: {batch.size}, of {some_of(batch.names)}; "
                    f"lower {batch.limits} of {section} in params.yaml"
                ) from error
            scaler.update()
            scheduler.step()
            optimizer.zero_grad()
            step += 1
            done = after_step(step, optimizer) if after_step else {}
            skipped = (~grad_norm.isfinite()).float()
            window.add(step, batch.names, losses | {"grad_norm": grad_norm, "skipped_steps": skipped} | done)
            ending, stopping, note = step == settings.steps, on_any_rank(bool(stop)), ""
            check = validation_at(step)
            if step % settings.log_every == 0 or check or ending:
                row = {"step": step} | window.means() | {"lr": lr}
                history.append(row)
                note = f"loss {row['loss']:.4f}"
                window.start()
                if check and not stopping:  # may take longer than whoever stops us waits
                    resume.save(_state_of(stateful, history, window, step, on_cuda, validated=False))
                    row |= check()
                    history.write()
                if not (check and stopping):  # else the next run sends it, whole
                    send(row)
            if rank() == 0:
                progress.advance(note)
            due = step % settings.save_every == 0 or ending or stopping
            if due:
                validated = bool(check) and not stopping
                resume.save(_state_of(stateful, history, window, step, on_cuda, validated=validated))
            if stopping:
                raise KeyboardInterrupt


class _Window:
    """Losses since the last row of the history. They stay on the device, so that steps need not wait for each other."""

    def __init__(self, section: str, scaler: torch.amp.GradScaler) -> None:
        self._section = section
        self._scaler = scaler
        self._skipped_in_a_row = 0
        self.start()

    def start(self) -> None:
        self._steps: list[tuple[int, tuple[str, ...], Losses]] = []
        self._num_looked_at = 0
        self._num_before = 0  # of the steps, those of a run that was stopped, whose seconds are not known
        self._waited = 0.0
        self._started = time.perf_counter()

    def waiting_for(self, batches: Iterator[B]) -> Iterator[B]:
        """The same batches, the time that each keeps the step waiting added up."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def add(self, step: int, names: tuple[str, ...], losses: Losses) -> None:
        """Raises DivergenceError now and then, so that it comes soon where rows of the history are far apart."""
        self._steps.append((step, names, {key: value.detach() for key, value in losses.items()}))
        if step % MAX_SKIPPED_IN_A_ROW == 0:
            self.refuse_divergence()

    def refuse_divergence(self) -> None:
        """Raise DivergenceError for the first step that was not finite, of those since it was last asked.

        With loss scaling gradients may overflow now and then, and the step is skipped; too many of them in a row, or
        so many that the scale has sunk to nothing, end the run as well.
        """
        steps, self._num_looked_at = self._steps[self._num_looked_at :], len(self._steps)
        columns = [torch.stack([of[key].float() for key in ("loss", "grad_norm")]) for _, _, of in steps]
        values = torch.stack(columns).tolist() if columns else []
        for (step, names, _), (loss, grad_norm) in zip(steps, values, strict=True):
            where = f"at step {step}, on {some_of(names)}"
            remedy = f"lower {self._section}.lr, or look at these samples; the last saved state is from before"
            if not math.isfinite(loss):
                raise DivergenceError(f"the loss became {loss} {where}; {remedy}")
            if math.isfinite(grad_norm):
                self._skipped_in_a_row = 0
                continue
            if not self._scaler.is_enabled():
                raise DivergenceError(f"the gradient norm became {grad_norm} {where}; {remedy}")
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
                raise DivergenceError(
                    f"gradients were not finite in {MAX_SKIPPED_IN_A_ROW} steps, last {where}; {remedy}"
                )
            if self._scaler.get_scale() < MIN_LOSS_SCALE:
                raise DivergenceError(f"gradients overflow whatever the loss is scaled by, last {where}; {remedy}")

    def state(self) -> list[tuple[int, tuple[str, ...], Losses]]:
        """What a saved state keeps of it, losses as means over ranks. Raises DivergenceError."""
        self.refuse_divergence()
        return [
            (step, names, {key: all_reduce_mean(value.float().clone()) for key, value in losses.items()})
            for step, names, losses in self._steps
        ]

    def go_on(self, state: list[tuple[int, tuple[str, ...], Losses]]) -> None:
        self._steps = state
        self._num_looked_at = self._num_before = len(state)

    def means(self) -> dict[str, float]:
        """Means over the window, of what is finite, and of a step's seconds and those that it waited for its batch.

        Codes that were revived and steps that were skipped are counted instead. Raises DivergenceError.
        """
        self.refuse_divergence()
        keys = list(self._steps[-1][2])
        table = torch.stack([torch.stack([losses[key].float() for key in keys]) for _, _, losses in self._steps]).cpu()
        elapsed = {"seconds_per_step": time.perf_counter() - self._started, "seconds_waiting": self._waited}
        columns = [column[column.isfinite()] for column in table.T]
        figures = [c.sum() if key in COUNTED else c.mean() for key, c in zip(keys, columns, strict=True)]
        over_ranks = all_reduce_mean(torch.stack(figures)).tolist()
        seconds = {key: value / (len(self._steps) - self._num_before) for key, value in elapsed.items()}
        return dict(zip(keys, over_ranks, strict=True)) | seconds


def _with_warmup(schedule: Schedule, settings: Training) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < settings.warmup_steps:
            return (step + 1) / settings.warmup_steps * schedule(0.0)
        return schedule((step - settings.warmup_steps) / (settings.steps - settings.warmup_steps))

    return factor


def _validation_at(validate: Validation | None, every: int, last: int, step: int) -> Validation | None:
    """What is to be done after this step, if it is one of those that are validated."""
    return validate if validate and (step % every == 0 or step == last) else None


def _restore(
    resume: ResumePoint,
    stateful: dict[str, Any],
    history: History,
    window: _Window,
    device: torch.device,
    validation_at: Callable[[int], Validation | None],
) -> tuple[int, list[dict[str, float]]]:
    """The step to go on from. A validation that a stop or a kill left out is made up for: in the rows returned."""
    state = resume.load(device)
    if state is None:
        return 0, []
    for key, part in stateful.items():
        part.load_state_dict(state[key])
    history.rows = state["history"]
    window.go_on(state["window"])
    made_whole = []
    if not state["validated"] and (validate := validation_at(state["step"])):
        history.rows[-1] |= validate()
        made_whole = history.rows[-1:]
    history.write()
    torch.set_rng_state(state["rng"].cpu())
    if "cuda_rng" in state:
        torch.cuda.set_rng_state(state["cuda_rng"].cpu())
    if rank() == 0:
        place = f"saved in {resume.directory} (remove it to start from nothing)"
        print(f"going on from step {state['step']}, {place}", file=sys.stderr)
    return state["step"], made_whole


def _state_of(
    stateful: dict[str, Any], history: History, window: _Window, step: int, on_cuda: bool, *, validated: bool
) -> dict[str, Any]:
    state = {key: part.state_dict() for key, part in stateful.items()}
    state |= {"history": history.rows, "step": step, "validated": validated, "rng": torch.get_rng_state()}
    state["window"] = window.state()
    return state | ({"cuda_rng": torch.cuda.get_rng_state()} if on_cuda else {})


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that gets an entry when SIGINT or SIGTERM asks to stop; the loop looks at it after each step."""
    received: list[int] = []

    def remember(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
