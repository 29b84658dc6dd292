"""Stage 2 on real shapes: what trains, what is frozen, and that an interruption changes nothing."""

import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
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
from model.vqvae import VQVAE, load_vqvae
from tasks import joint_training as joint
from tasks import stage2 as module
from tasks.data import CODEBOOK_FILE
from tasks.joint_training import param_groups
from tasks.run import Settings, paths
from tasks.stage1 import stage1
from tasks.stage2 import stage2, start_of_stage2
from tasks.twin import twin
from tests.shapes import one_thread, ring_and_box
from tests.tasks.conftest import copy_of, forget_training

WEIGHTS = paths.STAGE2 / "model.safetensors"


def with_stage2(settings: Settings, **changes) -> Settings:
    return settings.model_copy(update={"stage2": settings.stage2.model_copy(update=changes)})


def with_codebook(settings: Settings, **changes) -> Settings:
    return settings.model_copy(update={"codebook": settings.codebook.model_copy(update=changes)})


def by_gradient(settings: Settings) -> Settings:
    return with_codebook(settings, update="gradient", revive_below=0.0)


def start() -> dict[str, torch.Tensor]:
    """What stage 1 left, under the names of the trained tokenizer."""
    vae = {f"vae.{key}": value for key, value in load_vae(paths.VAE).state_dict().items()}
    return vae | {"quantizer.levels.0.codebook": load_file(CODEBOOK_FILE)["level1"]}


def changed_keys() -> set[str]:
    before, after = start(), load_file(WEIGHTS)
    assert after.keys() == before.keys()
    return {key for key in before if not torch.equal(before[key], after[key])}


def metrics() -> dict:
    return json.loads((paths.METRICS / "stage2.json").read_text())


def history() -> pd.DataFrame:
    return pd.read_csv(paths.METRICS / "stage2_history.tsv", sep="\t")


@pytest.fixture
def codes_before_each_step(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    codes: list[torch.Tensor] = []
    load = module.start_of_stage2

    def load_and_watch(params) -> VQVAE:
        vqvae = load(params)

        def remember(quantizer, inputs, output):
            if torch.is_grad_enabled():  # not while validating
                codes.append(quantizer.codebooks[0].detach().clone())

        vqvae.quantizer.register_forward_hook(remember)
        return vqvae

    monkeypatch.setattr(module, "start_of_stage2", load_and_watch)
    return codes


# --- everything trains -----------------------------------------------------------------------------------------------


def test_everything_changes_and_reconstruction_improves(
    small_project: Path,
    small_settings: Settings,
    codes_before_each_step: list[torch.Tensor],
):
    stage2(small_settings)
    assert changed_keys() == start().keys()
    figures = metrics()
    assert figures["after"]["val_l1"] < figures["before"]["val_l1"]

    codes = [*codes_before_each_step, load_file(WEIGHTS)["quantizer.levels.0.codebook"]]
    moved = [not torch.equal(before, after) for before, after in pairwise(codes)]
    assert moved == [True] * 18 + [False] * 2


def test_the_history_shows_the_decay_and_all_terms(trained_project: Path, small_settings: Settings):
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


def test_a_codebook_that_did_not_pass_the_gate_is_not_trained_with(small_project: Path, small_settings: Settings):
    paths.PASS_TOKEN.unlink()
    with pytest.raises(InputError, match=r"artifacts/gate/passed is missing: the gate has not passed this codebook"):
        stage2(small_settings)
    assert not paths.STAGE2.exists()


def test_each_validation_shape_is_told_before_and_after(trained_project: Path):
    told = json.loads((paths.STAGE2 / "validation.json").read_text())
    for time in ("before", "after"):
        assert sorted(told[time]) == ["val/beam", "val/ring"]
        mean = np.mean([figures["val_l1"] for figures in told[time].values()])
        assert metrics()[time]["val_l1"] == pytest.approx(mean)
    assert metrics()["after"]["val_l1"] == pytest.approx(history().val_l1.iloc[-1], rel=1e-4)


def test_the_twin_trains_the_network_alone(small_project: Path, small_settings: Settings):
    twin(small_settings)
    before, after = load_vae(paths.VAE).state_dict(), load_vae(paths.TWIN).state_dict()
    assert after.keys() == before.keys()
    assert not any(torch.equal(after[key], before[key]) for key in before)
    figures = json.loads((paths.METRICS / "twin.json").read_text())
    assert figures["after"]["val_l1"] < figures["before"]["val_l1"]
    table = pd.read_csv(paths.METRICS / "twin_history.tsv", sep="\t")
    assert (table.vq_loss == 0).all()
    assert not [column for column in table if "codebook" in column or "perplexity" in column or "codes" in column]


def test_what_the_twin_asks_to_lower_is_in_params_yaml(small_project: Path, small_settings: Settings):
    with pytest.raises(InputError, match=r"^the (loss|gradient norm) became .*; lower stage2\.lr"):
        twin(with_stage2(small_settings, lr=1e30, warmup_steps=0))


# --- the decoder alone -----------------------------------------------------------------------------------------------


def test_training_the_decoder_leaves_encoder_and_codes(small_project: Path, small_settings: Settings):
    stage2(with_stage2(small_settings, train="decoder"))
    assert changed_keys() == {key for key in start() if key.startswith("vae.decoder.")}
    assert metrics()["after"]["val_l1"] < metrics()["before"]["val_l1"]


# --- parameter groups ------------------------------------------------------------------------------------------------


def test_codes_that_follow_averages_are_left_to_them(small_project: Path, small_settings: Settings):
    vqvae = start_of_stage2(small_settings.codebook)
    decoder, encoder = param_groups(vqvae, small_settings.stage2)
    assert {id(p) for p in decoder["params"]} == {id(p) for p in vqvae.vae.decoder.parameters()}
    assert {id(p) for p in encoder["params"]} == {id(p) for p in vqvae.vae.encoder.parameters()}
    assert encoder["lr"] == small_settings.stage2.lr * small_settings.stage2.encoder_lr_ratio
    assert [name for name, p in vqvae.named_parameters() if not p.requires_grad] == ["quantizer.levels.0.codebook"]


def test_by_gradient_codes_learn_without_decay_and_rest_in_the_last_tenth(
    small_project: Path, small_settings: Settings
):
    settings = by_gradient(with_stage2(small_settings, steps=500, warmup_steps=20))
    vqvae = start_of_stage2(settings.codebook)
    _, _, codes = param_groups(vqvae, settings.stage2)
    assert [id(p) for p in codes["params"]] == [id(p) for p in vqvae.quantizer.codebooks]
    assert all(p.requires_grad for p in vqvae.parameters())
    assert "lr" not in codes  # the decoder's
    assert codes["weight_decay"] == 0
    moving = [codes["schedule"]((step - 20) / 480) > 0 for step in range(20, 500)]
    assert moving == [True] * 430 + [False] * 50


def test_with_the_decoder_alone_nothing_else_wants_a_gradient(small_project: Path, small_settings: Settings):
    vqvae = start_of_stage2(small_settings.codebook)
    (group,) = param_groups(vqvae, small_settings.stage2.model_copy(update={"train": "decoder"}))
    wanted = {name for name, parameter in vqvae.named_parameters() if parameter.requires_grad}
    assert wanted == {name for name, _ in vqvae.named_parameters() if name.startswith("vae.decoder.")}
    assert len(group["params"]) == len(wanted)


# --- interrupted -----------------------------------------------------------------------------------------------------


def test_a_killed_run_ends_with_the_same_bits_and_figures(
    trained_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    expected, figures, table = WEIGHTS.read_bytes(), metrics(), history()
    WEIGHTS.unlink()
    loss, calls = joint.vqvae_loss, []

    def die_at_step_13(*args, **kwargs):
        calls.append(1)
        if len(calls) == 13:
            raise ConnectionAbortedError  # nothing in the stage knows it
        return loss(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(joint, "vqvae_loss", die_at_step_13)
        with pytest.raises(ConnectionAbortedError):
            stage2(small_settings)
    assert not WEIGHTS.exists()
    assert list(paths.RESUME.glob("stage2/*/state.pt"))

    calls.clear()
    monkeypatch.setattr(joint, "vqvae_loss", lambda *args, **kwargs: (calls.append(1), loss(*args, **kwargs))[1])
    stage2(small_settings)
    assert len(calls) == small_settings.stage2.steps - 10
    assert WEIGHTS.read_bytes() == expected
    assert metrics() == figures
    pd.testing.assert_frame_equal(history(), table)


def revived(two_levels: Settings) -> Settings:
    return with_codebook(two_levels, revive_below=0.9, ema_decay=0.7)


@pytest.fixture(scope="module")
def of_two_levels(made_once: Path, two_levels: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both stages make of a codebook of two levels whose dead codes are revived."""
    root = shutil.copytree(made_once, tmp_path_factory.mktemp("two_levels"), dirs_exist_ok=True)
    with chdir(root), one_thread():
        stage1(two_levels)
        stage2(revived(two_levels))
    return root


@pytest.fixture
def project_of_two_levels(of_two_levels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with copy_of(of_two_levels, tmp_path, monkeypatch) as project:
        yield project


@pytest.mark.usefixtures("project_of_two_levels")
def test_the_result_is_a_network_with_the_codes_of_all_levels():
    vqvae = load_vqvae(paths.STAGE2).vqvae
    assert vqvae.quantizer.num_codes == [16, 4]
    tokenizer = ShapeTokenizer(vqvae, resolution=32, truncation_voxels=2.0, mode="auto", max_bad_flip_ratio=0.4)
    assert tokenizer.encode(ring_and_box()).indices.shape[1] == 2
    (folder,) = (paths.RESUME / "stage2").iterdir()
    assert {path.name for path in folder.iterdir()} == {"finished", "state.pt"}


@pytest.mark.usefixtures("project_of_two_levels")
def test_two_levels_that_are_revived_resume_to_the_bit(two_levels: Settings, monkeypatch: pytest.MonkeyPatch):
    """Averages of both levels and the draws of revival are part of the saved state."""
    wanted = revived(two_levels)
    forget_training()
    expected, table = WEIGHTS.read_bytes(), history()
    assert table.revived_codes.sum() > 0
    WEIGHTS.unlink()
    loss, calls = joint.vqvae_loss, []

    def die_at_step_8(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise ConnectionAbortedError
        return loss(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(joint, "vqvae_loss", die_at_step_8)
        with pytest.raises(ConnectionAbortedError):
            stage2(wanted)
    stage2(wanted)
    assert WEIGHTS.read_bytes() == expected


def test_a_state_of_other_parameters_is_not_taken_up(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    loss, calls = joint.vqvae_loss, []

    def die_at_step_7(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise ConnectionAbortedError
        return loss(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(joint, "vqvae_loss", die_at_step_7)
        with pytest.raises(ConnectionAbortedError):
            stage2(small_settings)
    calls.clear()
    monkeypatch.setattr(joint, "vqvae_loss", lambda *args, **kwargs: (calls.append(1), loss(*args, **kwargs))[1])
    stage2(with_stage2(small_settings, lambda_outside=0.0))
    assert len(calls) == small_settings.stage2.steps
