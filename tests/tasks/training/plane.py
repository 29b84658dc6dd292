"""Training of a model small enough to know what it does: a plane, fitted to noisy points."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from tasks.run import Tracking, Training
from tasks.training import History, ResumePoint, train

SETTINGS = Training(
    steps=20,
    lr=0.01,
    warmup_steps=4,
    weight_decay=0.01,
    max_grad_norm=1.0,
    log_every=5,
    save_every=5,
    seed=0,
)
HISTORY = Path("metrics/history.tsv")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Points:
    x: torch.Tensor
    names: tuple[str, ...]
    size: str = "4 points"
    limits: str = "the number of points"


class Killed(Exception):
    """Ends the loop as kill -9 would: nothing gets to run after it."""


def points_from(step: int) -> Iterator[Points]:
    while True:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        yield Points(x, (f"a{step}", f"b{step}"))
        step += 1


def regression(model: nn.Module, at: dict[int, Callable[[], object]] | None = None):
    """Fit a plane from noisy points; the noise is the global generator's. `at` does something at a step."""
    steps: list[str] = []

    def losses_of(batch: Points) -> dict[str, torch.Tensor]:
        steps.append(batch.names[0])
        step = int(batch.names[0][1:])
        result = (at or {}).get(step, lambda: None)()
        target = batch.x.sum(1, keepdim=True) + 0.1 * torch.randn(4, 1)
        loss = (model(batch.x) - target).square().mean()
        factor = result if isinstance(result, float) else 1.0
        return {"loss": loss * factor, "twice": 2 * loss.detach()}

    losses_of.steps = steps
    return losses_of


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))


def fit(
    model: nn.Module,
    losses_of: Callable,
    *,
    settings: Training = SETTINGS,
    groups: list[dict] | None = None,
    validate: Callable[[], dict[str, float]] | None = None,
    validate_every: int = 0,
    tracking: Tracking | None = None,
) -> None:
    train(
        model,
        groups or [{"params": list(model.parameters())}],
        losses_of,
        points_from,
        settings=settings,
        section="regression",
        resume=ResumePoint("regression", "fingerprint"),
        history=History(HISTORY, tracking),
        validate=validate,
        validate_every=validate_every,
    )


def changed(**values) -> Training:
    return Training(**{**SETTINGS.model_dump(), **values})


def history() -> pd.DataFrame:
    return pd.read_csv(HISTORY, sep="\t")


def assert_same_bits(first: nn.Module, second: nn.Module) -> None:
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def saved_step() -> int:
    return ResumePoint("regression", "fingerprint").load(CPU)["step"]
