"""What the training loop does when a loss or gradients are not finite."""

import math

import pytest
import torch

from tasks.training import ResumePoint, loop
from tasks.training.loop import DivergenceError, _Window
from tests.tasks.training.plane import CPU, Points, assert_same_bits, changed, fit, history, new_model, regression


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_step_and_samples(value):
    model = new_model()
    with pytest.raises(DivergenceError, match=rf"the loss became {value} at step 8, on a7, b7; lower regression.lr"):
        fit(model, regression(model, {7: lambda: value}))


def test_nothing_is_saved_of_a_run_that_diverged():
    """Step 7 is bad, 10 would be logged and saved."""
    model = new_model()
    with pytest.raises(DivergenceError, match="at step 7, on a6, b6"):
        fit(model, regression(model, {6: lambda: math.nan}))
    state = ResumePoint("regression", "fingerprint").load(CPU)
    assert state["step"] == 5
    assert all(value.isfinite().all() for value in state["model"].values())


class GradientOfNaN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.nan


def test_a_gradient_that_is_not_finite_stops_at_its_own_step():
    """The loss would show it only one step later, on samples that have nothing to do with it."""
    model = new_model()
    plain = regression(model)

    def losses_of(batch: Points) -> dict[str, torch.Tensor]:
        losses = plain(batch)
        return losses | {"loss": GradientOfNaN.apply(losses["loss"])} if batch.names[0] == "a2" else losses

    with pytest.raises(DivergenceError, match="the gradient norm became nan at step 3, on a2, b2"):
        fit(model, losses_of)


def window_of(grad_norms: list[float], *, loss_scale: float) -> _Window:
    window = _Window("regression", torch.amp.GradScaler("cpu", init_scale=loss_scale))
    for step, norm in enumerate(grad_norms, start=1):
        skipped = torch.tensor(float(not math.isfinite(norm)))
        losses = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(norm), "skipped_steps": skipped}
        window.add(step, (f"a{step}",), losses)
    return window


def test_with_loss_scaling_a_step_that_overflows_is_skipped_and_counted():
    row = window_of([1.0, math.inf, 3.0, math.nan, math.inf], loss_scale=8192.0).means()
    assert row["skipped_steps"] == 3
    assert row["grad_norm"] == 2.0


def test_with_loss_scaling_gradients_that_never_are_finite_end_the_run():
    """Across rows of the history, too: the weights would not have moved, and the run would end well."""
    window = window_of([1.0] + 9 * [math.nan], loss_scale=2.0)
    window.means()
    window.start()
    for step in range(11, 15):
        losses = {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(math.nan), "skipped_steps": torch.tensor(1.0)}
        window.add(step, (f"a{step}",), losses)
    with pytest.raises(DivergenceError, match=r"not finite in 13 steps, last at step 14, on a14; lower regression\.lr"):
        window.means()


def test_with_loss_scaling_a_scale_that_has_sunk_to_nothing_ends_the_run():
    with pytest.raises(DivergenceError, match=r"whatever the loss is scaled by, last at step 2, on a2"):
        window_of([1.0, math.inf, 1.0], loss_scale=0.5).means()


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")  # torch, where the first step is skipped
def test_with_loss_scaling_nan_at_every_step_ends_the_run_within_20(monkeypatch: pytest.MonkeyPatch):
    """However seldom the history gets a row; the scaler is torch's own, which works on a CPU too."""
    monkeypatch.setattr(loop, "scales_loss", lambda device: True)
    model, before = new_model(), new_model()
    plain = regression(model)

    def losses_of(batch: Points) -> dict[str, torch.Tensor]:
        losses = plain(batch)
        return losses | {"loss": GradientOfNaN.apply(losses["loss"])}

    with pytest.raises(DivergenceError, match=r"not finite in 13 steps, last at step 13, on a12, b12; lower"):
        fit(model, losses_of, settings=changed(steps=100, log_every=50, save_every=50))
    assert_same_bits(model, before)


class GradientInHalf(torch.autograd.Function):
    """Of four, as float16 holds it."""

    @staticmethod
    def forward(ctx, x):
        return 4 * x

    @staticmethod
    def backward(ctx, grad):
        return (4 * grad).half().to(grad.dtype)


def test_loss_scaling_begins_where_gradients_of_the_first_steps_do_not_overflow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "scales_loss", lambda device: True)
    model = new_model()
    plain = regression(model)

    def losses_of(batch: Points) -> dict[str, torch.Tensor]:
        losses = plain(batch)
        return losses | {"loss": GradientInHalf.apply(losses["loss"])}

    fit(model, losses_of)
    assert history().skipped_steps.sum() == 0
