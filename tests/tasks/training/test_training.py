"""The training loop, on a model small enough to know what it does."""

import math
import os
import shutil
import signal
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from model.errors import InputError
from tasks.run import paths
from tasks.training import History, ResumePoint, cosine
from tests.tasks.training.plane import (
    HISTORY,
    Killed,
    Points,
    assert_same_bits,
    changed,
    fit,
    history,
    new_model,
    regression,
    saved_step,
)


def test_running_out_of_memory_says_on_what_and_what_to_lower():
    def too_large() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    model = new_model()
    with pytest.raises(InputError, match=r"step 8 does not fit .*: 4 points, of a7, b7; lower the number of points"):
        fit(model, regression(model, at={7: too_large}))


# --- what it does ----------------------------------------------------------------------------------------------------


def test_the_loss_goes_down():
    model = new_model()
    fit(model, regression(model), settings=changed(steps=300))
    losses = history().loss
    assert losses.iloc[-1] < 0.1 * losses.iloc[0]


def test_one_row_of_means_for_each_log_interval():
    model = new_model()
    seen: list[float] = []
    losses_of = regression(model)

    def record(batch: Points) -> dict[str, torch.Tensor]:
        losses = losses_of(batch)
        seen.append(losses["loss"].item())
        return losses

    fit(model, record, settings=changed(steps=12))
    table = history()
    assert table.step.tolist() == [5, 10, 12]
    means = [sum(seen[:5]) / 5, sum(seen[5:10]) / 5, sum(seen[10:]) / 2]
    assert table.loss.tolist() == pytest.approx(means, rel=1e-5)
    assert table.twice.tolist() == pytest.approx([2 * mean for mean in means], rel=1e-5)
    assert {"lr", "grad_norm"} < set(table.columns)
    assert not any(column.startswith("seconds") for column in table.columns)
    timings = pd.read_csv(paths.TIMINGS / HISTORY.name, sep="\t")
    assert timings.step.tolist() == [5, 10, 12]
    assert (timings.seconds_per_step > timings.seconds_waiting).all()
    assert (timings.seconds_waiting > 0).all()


def test_learning_rate_warms_up_then_follows_the_cosine():
    model = new_model()
    fit(model, regression(model), settings=changed(log_every=1))
    expected = [0.01 * (k + 1) / 4 for k in range(4)] + [0.01 * cosine(k / 16) for k in range(16)]
    assert history().lr.tolist() == pytest.approx(expected, rel=1e-4)
    assert [cosine(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.505, 0.01])


def test_the_logged_gradient_norm_is_that_before_clipping():
    model = nn.Linear(3, 1, bias=False)
    x = torch.ones(1, 3)

    def losses_of(batch: Points) -> dict[str, torch.Tensor]:
        return {"loss": 100 * model(x).sum()}  # gradient (100, 100, 100) at every step

    fit(model, losses_of)
    assert history().grad_norm.tolist() == pytest.approx([100 * math.sqrt(3)] * 4, rel=1e-5)


def test_a_schedule_of_zero_leaves_a_group_as_it_was():
    model = new_model()
    before = model[2].weight.clone()
    frozen = {"params": list(model[2].parameters()), "schedule": lambda progress: 0.0, "weight_decay": 0.0}
    settings = changed(warmup_steps=0)
    fit(model, regression(model), settings=settings, groups=[{"params": list(model[0].parameters())}, frozen])
    assert torch.equal(model[2].weight, before)


def test_validation_comes_when_it_is_due_whatever_the_log_interval():
    model = new_model()
    fit(model, regression(model), settings=changed(steps=10), validate=lambda: {"val": 1.0}, validate_every=3)
    table = history()
    assert table.step[table.val == 1].tolist() == [3, 6, 9, 10]
    assert table.step.tolist() == [3, 5, 6, 9, 10]


# --- interrupted and resumed -----------------------------------------------------------------------------------------


def kill() -> None:
    raise Killed


def uninterrupted() -> tuple[nn.Module, pd.DataFrame]:
    model = new_model()
    fit(model, regression(model))
    table = history()
    shutil.rmtree(ResumePoint("regression", "fingerprint").directory)
    return model, table


@pytest.mark.parametrize(("step", "save_every"), [(3, 5), (5, 5), (13, 5), (19, 5), (13, 4)])
def test_a_killed_run_ends_with_the_same_bits(step, save_every):
    """Weights, and every figure of the history, as if nothing had happened."""
    expected, table = uninterrupted()
    model = new_model()
    settings = changed(save_every=save_every)
    with pytest.raises(Killed):
        fit(model, regression(model, {step: kill}), settings=settings)
    model = new_model()
    torch.manual_seed(99)  # a new process knows nothing of the old one's generator
    if step < save_every:
        torch.manual_seed(0)
        model = new_model()
    losses_of = regression(model)
    fit(model, losses_of, settings=settings)
    assert losses_of.steps[0] == f"a{step // save_every * save_every}"
    assert_same_bits(model, expected)
    pd.testing.assert_frame_equal(history(), table)


@pytest.mark.parametrize(("number", "last"), [(signal.SIGINT, 7), (signal.SIGTERM, 7), (signal.SIGTERM, 1)])
def test_a_signal_saves_the_step_and_raises_keyboard_interrupt(number, last):
    """Also in a step before the first row of the history."""
    expected, table = uninterrupted()
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    model = new_model()
    losses_of = regression(model, {last: lambda: os.kill(os.getpid(), number)})
    with pytest.raises(KeyboardInterrupt):
        fit(model, losses_of)
    assert losses_of.steps[-1] == f"a{last}"
    assert saved_step() == last + 1  # the step that the signal fell into is finished
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    model = new_model()
    losses_of = regression(model)
    fit(model, losses_of)
    assert losses_of.steps[0] == f"a{last + 1}"
    assert_same_bits(model, expected)
    pd.testing.assert_frame_equal(history(), table)


def test_a_signal_is_not_kept_waiting_by_a_validation_which_the_next_run_makes_up_for():
    model = new_model()
    losses_of = regression(model, {7: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(KeyboardInterrupt):
        fit(model, losses_of, validate=lambda: pytest.fail("it validates"), validate_every=8)
    assert saved_step() == 8
    model = new_model()
    fit(model, regression(model), validate=lambda: {"val_l1": 0.5}, validate_every=8)
    assert history().set_index("step").val_l1.dropna().index.tolist() == [8, 16, 20]


def test_a_step_is_saved_before_it_is_validated():
    def killed() -> dict[str, float]:
        raise Killed

    model = new_model()
    with pytest.raises(Killed):
        fit(model, regression(model), validate=killed, validate_every=8)
    assert saved_step() == 8


@pytest.mark.parametrize(("killed_at", "found"), [(0, {8: 1, 16: 2, 20: 3}), (2, {8: 0, 16: 1, 20: 3})])
def test_a_validation_that_a_kill_cut_short_is_made_up_for(killed_at: int, found: dict[int, int]):
    looked = iter(range(100))

    def validate(killed_at: int = -1) -> dict[str, float]:
        if (number := next(looked)) == killed_at:
            raise Killed
        return {"val_l1": float(number)}

    model = new_model()
    with pytest.raises(Killed):
        fit(model, regression(model), validate=partial(validate, killed_at), validate_every=8)
    model = new_model()
    fit(model, regression(model), validate=validate, validate_every=8)
    assert history().set_index("step").val_l1.dropna().to_dict() == found


def test_a_finished_run_takes_no_more_steps(capsys):
    expected = new_model()
    fit(expected, regression(expected))
    model = new_model()
    losses_of = regression(model)
    fit(model, losses_of)
    assert losses_of.steps == []
    assert_same_bits(model, expected)
    assert "going on from step 20" in capsys.readouterr().err


# --- the history -----------------------------------------------------------------------------------------------------


def test_a_column_that_rows_lack_is_empty_there():
    table = History(HISTORY)
    table.append({"step": 1, "loss": 0.5})
    table.append({"step": 2, "loss": 0.25, "val": 3.0})
    assert HISTORY.read_text() == "step\tloss\tval\n1\t0.5\t\n2\t0.25\t3\n"
