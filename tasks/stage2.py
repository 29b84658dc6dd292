"""Train encoder, codebook and decoder together, from the imported VAE and the codebook of stage 1."""

from pathlib import Path

import torch

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import in_process_group
from model.errors import InputError
from model.quantizer import ResidualQuantizer, TrainedCodebook
from model.vqvae import VQVAE, save_vqvae
from tasks.data import CODEBOOK_FILE, load_codebooks
from tasks.joint_training import train_jointly
from tasks.run import Codebook, Settings, paths, run_stage


@in_process_group()
def stage2(settings: Settings) -> None:
    """Leaves weights and codes, and how each validation shape came out before and after; final_gate judges them."""
    if not paths.PASS_TOKEN.is_file():
        raise InputError(f"{paths.PASS_TOKEN} is missing: the gate has not passed this codebook; run dvc repro gate")
    torch.manual_seed(settings.stage2.seed)
    vqvae = start_of_stage2(settings.codebook).to(pick_device())

    def save(directory: Path) -> None:
        save_vqvae(VQVAE(vqvae.vae, ResidualQuantizer.of(vqvae.quantizer.codebooks)), directory)

    inputs = [*paths.VAE.iterdir(), CODEBOOK_FILE]
    train_jointly(vqvae, settings, stage="stage2", inputs=inputs, directory=paths.STAGE2, save=save)


def start_of_stage2(params: Codebook) -> VQVAE:
    """What stage 1 left: the imported VAE with the trained codebook, which trains on."""
    codebook = TrainedCodebook(
        load_codebooks(), update=params.update, decay=params.ema_decay, revive_below=params.revive_below
    )
    return VQVAE(load_vae(paths.VAE), codebook)


if __name__ == "__main__":
    run_stage("stage2", stage2)
