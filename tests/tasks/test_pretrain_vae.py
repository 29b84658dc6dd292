"""A VAE trained on real shapes, from nothing and from weights there are."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from model.checkpoint import load_vae
from model.errors import InputError
from tasks.pretrain_vae import pretrain_vae
from tasks.run import Settings, paths

SMALL = {"model_channels": 64, "num_blocks": 1, "latent_channels": 8, "batch_voxels": 16000, "shape_voxels": 11000}
OFTEN = {"steps": 20, "warmup_steps": 2, "log_every": 5, "save_every": 5, "validate_every": 10}


def with_pretraining(settings: Settings, **changes) -> Settings:
    changes = SMALL | OFTEN | changes
    return settings.model_copy(update={"pretrain_vae": settings.pretrain_vae.model_copy(update=changes)})


def test_a_vae_from_nothing_learns(small_project: Path, small_settings: Settings):
    pretrain_vae(with_pretraining(small_settings, lr=0.003))
    history = pd.read_csv(paths.METRICS / "pretrain_vae_history.tsv", sep="\t").set_index("step")
    assert history.recon_loss[20] < 0.9 * history.recon_loss[5]
    assert json.loads((paths.METRICS / "pretrain_vae.json").read_text())["val_l1"] == pytest.approx(
        history.val_l1[20], 1e-5
    )
    assert load_vae(paths.PRETRAINED).config.latent_channels == 8


def test_a_vae_goes_on_from_weights_there_are(small_project: Path, small_settings: Settings):
    pretrain_vae(with_pretraining(small_settings, start_from=f"{paths.VAE}", lr=1e-12, weight_decay=0.0, steps=5))
    before, after = load_vae(paths.VAE).state_dict(), load_vae(paths.PRETRAINED).state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-9)


def test_weights_of_another_size_are_refused(small_project: Path, small_settings: Settings):
    with pytest.raises(InputError, match=r"start_from \(artifacts/vae\).*model_channels=64.*model_channels=128"):
        pretrain_vae(with_pretraining(small_settings, start_from=f"{paths.VAE}", model_channels=128))
