"""Stage 2 on real shapes: what trains, what is frozen, and that an interruption changes nothing."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import load_vae
from model.errors import InputError
from model.tokenizer import ShapeTokenizer
from model.vqvae import VQVAE
from tasks import stage2 as module
from tasks.data import CODEBOOK_FILE
from tasks.run import METRICS, PASS_TOKEN, RESUME, TOKENIZER, VAE, Settings
from tasks.stage2 import load_vqvae, param_groups, stage2
from tests.shapes import ring_and_box

WEIGHTS = TOKENIZER / "model.safetensors"


def with_stage2(settings: Settings, **changes) -> Settings:
    return settings.model_copy(update={"stage2": settings.stage2.model_copy(update=changes)})


def start() -> dict[str, torch.Tensor]:
    """What stage 1 left, under the names of the trained tokenizer."""
    vae = {f"vae.{key}": value for key, value in load_vae(VAE).state_dict().items()}
    return vae | {"quantizer.codebook": load_file(CODEBOOK_FILE)["codebook"]}


def changed_keys() -> set[str]:
    before, after = start(), load_file(WEIGHTS)
    assert after.keys() == before.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def metrics() -> dict:
    return json.loads((METRICS / "stage2.json").read_text())


def history() -> pd.DataFrame:
    return pd.read_csv(METRICS / "stage2_history.tsv", sep="\t")


@pytest.fixture
def codes_before_each_step(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    codes: list[torch.Tensor] = []
    load = module.load_vqvae

    def load_and_watch() -> VQVAE:
        vqvae = load()

        def remember(quantizer, inputs, output):
            if torch.is_grad_enabled():  # not while validating
                codes.append(quantizer.codebook.detach().clone())

        vqvae.quantizer.register_forward_hook(remember)
        return vqvae

    monkeypatch.setattr(module, "load_vqvae", load_and_watch)
    return codes


# --- everything trains -----------------------------------------------------------------------------------------------


def test_everything_changes_and_reconstruction_improves(
    small_project: Path,
    small_settings: Settings,
    codes_before_each_step: list[torch.Tensor],
    capsys: pytest.CaptureFixture,
):
    stage2(small_settings)
    assert "went out of use" not in capsys.readouterr().out
    assert changed_keys() == start().keys()
    figures = metrics()
    assert figures["after"]["val_l1"] < figures["before"]["val_l1"]

    codes = [*codes_before_each_step, load_file(WEIGHTS)["quantizer.codebook"]]
    moved = [not torch.equal(before, after) for before, after in pairwise(codes)]
    assert moved == [True] * 18 + [False] * 2


def test_the_history_shows_the_decay_and_all_terms(small_project: Path, small_settings: Settings):
    stage2(with_stage2(small_settings, log_every=1))
    table = history()
    lr = table.lr.to_numpy()
    warmup = small_settings.stage2.warmup_steps
    assert lr[warmup] == pytest.approx(small_settings.stage2.lr)
    assert (np.diff(lr[warmup:]) < 0).all()
    assert lr[-1] < 0.05 * lr.max()
    total = (
        table.recon_loss
        + small_settings.stage2.lambda_outside * table.outside_loss
        + small_settings.codebook.lambda_vq * table.vq_loss
        + small_settings.stage2.lambda_commitment * table.commitment_loss
    )
    np.testing.assert_allclose(table.loss, total, rtol=1e-4)
    assert table.step[table.val_l1.notna()].tolist() == [10, 20]
    assert table.sign_errors.between(0, 1).all()
    assert table.codebook_usage.between(0, 1).all()
    assert {"perplexity", "grad_norm"} < set(table.columns)


def test_codes_that_go_out_of_use_are_named(
    small_project: Path, small_settings: Settings, capsys: pytest.CaptureFixture
):
    stage2(with_stage2(small_settings, lr=0.02, encoder_lr_ratio=1.0, codebook_lr_ratio=0.01))
    before, after = (metrics()[time]["perplexity"] for time in ("heldout_before", "heldout"))
    assert after < 0.8 * before
    said = capsys.readouterr().out
    assert f"perplexity on held-out shapes was {before:.0f} and is {after:.0f}" in said
    assert "raise stage2.lambda_commitment" in said


def test_a_codebook_that_did_not_pass_the_gate_is_not_trained_with(small_project: Path, small_settings: Settings):
    PASS_TOKEN.unlink()
    with pytest.raises(InputError, match=r"artifacts/gate/passed is missing: the gate has not passed this codebook"):
        stage2(small_settings)
    assert not TOKENIZER.exists()


def test_the_figures_of_the_gate_are_taken_again(small_project: Path, small_settings: Settings):
    stage2(small_settings)
    for use in (metrics()["heldout_before"], metrics()["heldout"]):
        assert use["num_tokens"] > 0
        assert 0 < use["usage"] <= 1
    assert 1 <= use["perplexity"] <= small_settings.codebook.num_codes
    assert metrics()["after"]["val_l1"] == pytest.approx(history().val_l1.iloc[-1], rel=1e-4)


def test_the_result_is_a_tokenizer(small_project: Path, small_settings: Settings):
    stage2(small_settings)
    tokenizer = ShapeTokenizer.from_pretrained(TOKENIZER)
    tokens = tokenizer.encode(ring_and_box())
    assert tokenizer.resolution == 32
    assert len(tokens) > 10
    assert not (RESUME / "stage2").exists()


# --- the decoder alone -----------------------------------------------------------------------------------------------


def test_training_the_decoder_leaves_encoder_and_codes(small_project: Path, small_settings: Settings):
    stage2(with_stage2(small_settings, train="decoder"))
    assert changed_keys() == {key for key in start() if key.startswith("vae.decoder.")}
    assert metrics()["after"]["val_l1"] < metrics()["before"]["val_l1"]


# --- parameter groups ------------------------------------------------------------------------------------------------


def test_every_parameter_is_in_one_group(small_project: Path, small_settings: Settings):
    vqvae = load_vqvae()
    decoder, encoder, codes = param_groups(vqvae, small_settings.stage2)
    assert {id(p) for p in decoder["params"]} == {id(p) for p in vqvae.vae.decoder.parameters()}
    assert {id(p) for p in encoder["params"]} == {id(p) for p in vqvae.vae.encoder.parameters()}
    assert [id(p) for p in codes["params"]] == [id(vqvae.quantizer.codebook)]
    assert all(p.requires_grad for p in vqvae.parameters())


@pytest.mark.parametrize(("share", "num_frozen"), [(0.1, 50), (0.5, 250), (0.0, 0), (1.0, 480)])
def test_codes_learn_slower_without_decay_and_rest_in_the_last_steps(
    small_project: Path, small_settings: Settings, share: float, num_frozen: int
):
    params = with_stage2(small_settings, steps=500, warmup_steps=20, codes_frozen_share=share).stage2
    _, encoder, codes = param_groups(load_vqvae(), params)
    assert encoder["lr"] == params.lr * params.encoder_lr_ratio
    assert codes["lr"] == params.lr * params.codebook_lr_ratio
    assert codes["weight_decay"] == 0
    moving = [codes["schedule"]((step - 20) / 480) > 0 for step in range(20, 500)]
    assert moving == [True] * (480 - num_frozen) + [False] * num_frozen


def test_codes_that_are_frozen_from_the_start_do_not_move_in_the_warmup(small_project: Path, small_settings: Settings):
    stage2(with_stage2(small_settings, codes_frozen_share=1.0))
    assert changed_keys() == start().keys() - {"quantizer.codebook"}


def test_with_the_decoder_alone_nothing_else_wants_a_gradient(small_project: Path, small_settings: Settings):
    vqvae = load_vqvae()
    (group,) = param_groups(vqvae, small_settings.stage2.model_copy(update={"train": "decoder"}))
    wanted = {name for name, parameter in vqvae.named_parameters() if parameter.requires_grad}
    assert wanted == {name for name, _ in vqvae.named_parameters() if name.startswith("vae.decoder.")}
    assert len(group["params"]) == len(wanted)


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_a_killed_run_ends_with_the_same_bits_and_figures(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    stage2(small_settings)
    expected, figures, table = WEIGHTS.read_bytes(), metrics(), history()
    WEIGHTS.unlink()
    loss, calls = module.vqvae_loss, []

    def die_at_step_13(*args, **kwargs):
        calls.append(1)
        if len(calls) == 13:
            raise ConnectionAbortedError  # nothing in the stage knows it
        return loss(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, "vqvae_loss", die_at_step_13)
        with pytest.raises(ConnectionAbortedError):
            stage2(small_settings)
    assert not WEIGHTS.exists()
    assert list(RESUME.glob("stage2/*/state.pt"))

    calls.clear()
    monkeypatch.setattr(module, "vqvae_loss", lambda *args, **kwargs: (calls.append(1), loss(*args, **kwargs))[1])
    stage2(small_settings)
    assert len(calls) == small_settings.stage2.steps - 10
    assert WEIGHTS.read_bytes() == expected
    assert metrics() == figures
    pd.testing.assert_frame_equal(history(), table)


def test_a_state_of_other_parameters_is_not_taken_up(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    loss, calls = module.vqvae_loss, []

    def die_at_step_7(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise ConnectionAbortedError
        return loss(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(module, "vqvae_loss", die_at_step_7)
        with pytest.raises(ConnectionAbortedError):
            stage2(small_settings)
    calls.clear()
    monkeypatch.setattr(module, "vqvae_loss", lambda *args, **kwargs: (calls.append(1), loss(*args, **kwargs))[1])
    stage2(with_stage2(small_settings, lambda_outside=0.0))
    assert len(calls) == small_settings.stage2.steps
