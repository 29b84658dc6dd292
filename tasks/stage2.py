"""Train encoder, codebook and decoder together, from the imported VAE and the codebook of stage 1."""

import json

import torch

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import in_process_group, rank
from model.errors import InputError
from model.files import whole_directory, write_whole
from model.quantizer import ResidualQuantizer
from model.vqvae import VQVAE, save_vqvae
from tasks.data import CODEBOOK_FILE, VALIDATION_FILE, load_codebooks
from tasks.joint_training import new_codebook, train_jointly
from tasks.run import METRICS, PASS_TOKEN, SDF, STAGE2, VAE, Codebook, Settings, run_stage
from tasks.shards import open_shards
from tasks.training import mean_figures


@in_process_group()
def stage2(settings: Settings) -> None:
    """Leaves weights and codes, and how each validation shape came out before and after; final_gate judges them."""
    if not PASS_TOKEN.is_file():
        raise InputError(f"{PASS_TOKEN} is missing: the gate has not passed this codebook; run dvc repro gate")
    shards = open_shards(SDF)
    torch.manual_seed(settings.stage2.seed)
    vqvae = start_of_stage2(settings.codebook).to(pick_device())
    inputs = [SDF / "index.parquet", *VAE.iterdir(), CODEBOOK_FILE]
    outcome = train_jointly(vqvae, shards, settings, stage="stage2", inputs=inputs)
    if rank() > 0:
        return
    by_shape = {"before": outcome.before, "after": outcome.after}
    with whole_directory(STAGE2) as directory:
        save_vqvae(VQVAE(vqvae.vae, ResidualQuantizer.of(vqvae.quantizer.codebooks)), directory)
        write_whole(directory / VALIDATION_FILE, json.dumps(by_shape, indent=1) + "\n")
    figures = {time: mean_figures(shapes) for time, shapes in by_shape.items()}
    write_whole(METRICS / "stage2.json", json.dumps(figures, indent=2) + "\n")
    outcome.resume.clear()


def start_of_stage2(params: Codebook) -> VQVAE:
    """What stage 1 left: the imported VAE with the trained codebook, which trains on."""
    return VQVAE(load_vae(VAE), new_codebook(load_codebooks(), params))


if __name__ == "__main__":
    run_stage("stage2", stage2)
