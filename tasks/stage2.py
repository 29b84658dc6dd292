"""Train encoder, codebook and decoder together, from the imported VAE and the codebook of stage 1."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import all_reduce_sum, in_process_group, num_ranks, rank
from model.errors import InputError
from model.files import whole_directory, write_whole
from model.quantizer import CodebookStatistics, VectorQuantizer, codebook_statistics, usage_of_batch
from model.tokenizer import ShapeTokenizer
from model.vqvae import VQVAE, vqvae_loss
from tasks.data import CODEBOOK_FILE, ShapeBatch, choose_views, encode_views, load_codebook, training_batches
from tasks.run import METRICS, PASS_TOKEN, SDF, TOKENIZER, VAE, Settings, Stage2, run_stage
from tasks.shards import Shards, open_shards
from tasks.training import History, Losses, ResumePoint, cosine, fingerprint, train, validate

LEFT_PERPLEXITY = 0.8  # of the perplexity on held-out shapes: with less, codes have gone out of use


@in_process_group()
def stage2(settings: Settings) -> None:
    if not PASS_TOKEN.is_file():
        raise InputError(f"{PASS_TOKEN} is missing: the gate has not passed this codebook; run dvc repro gate")
    params = settings.stage2
    shards = open_shards(SDF)
    device = pick_device()
    torch.manual_seed(params.seed)
    vqvae = load_vqvae().to(device)
    if params.recompute:
        vqvae.vae.recompute_activations()

    def check() -> dict[str, float]:
        return validate(
            lambda target: vqvae(target.band, target.plan).decoded, shards, shards.names("val"), device=device
        )

    inputs = [SDF / "index.parquet", *VAE.iterdir(), CODEBOOK_FILE]
    resume = ResumePoint("stage2", fingerprint("stage2", [params, settings.codebook], inputs))
    before = check()
    use_before = heldout_usage(vqvae, shards, settings.encode.heldout_symmetries)
    train(
        vqvae,
        param_groups(vqvae, params),
        joint_losses(vqvae, settings),
        training_batches(shards, params, device),
        settings=params,
        resume=resume,
        history=History(METRICS / "stage2_history.tsv"),
        validate=check,
        validate_every=params.validate_every,
        description="stage2",
    )
    after = check()
    use = heldout_usage(vqvae, shards, settings.encode.heldout_symmetries)
    if rank() > 0:
        return
    tokenizer = ShapeTokenizer(
        vqvae,
        resolution=shards.resolution,
        truncation_voxels=shards.truncation_voxels,
        mode=settings.voxelize.mode,
        max_bad_flip_ratio=settings.voxelize.max_bad_flip_ratio,
    )
    figures = {"before": before, "after": after, "heldout_before": asdict(use_before), "heldout": asdict(use)}
    with whole_directory(TOKENIZER) as directory:
        tokenizer.save_pretrained(directory, figures)
    write_whole(METRICS / "stage2.json", json.dumps(figures, indent=2) + "\n")
    resume.clear()
    if after["val_l1"] >= before["val_l1"]:
        print(
            f"stage 2 did not improve reconstruction (val_l1 {before['val_l1']:.4f} before, {after['val_l1']:.4f} "
            "after); lower stage2.lr, or raise stage2.steps"
        )
    if use.perplexity < LEFT_PERPLEXITY * use_before.perplexity:
        print(
            f"codes went out of use: their perplexity on held-out shapes was {use_before.perplexity:.0f} and is "
            f"{use.perplexity:.0f}; if commitment_loss rose, the encoder ran away from them: raise "
            "stage2.lambda_commitment; if it fell, encoder and codes drew together: try a lower stage2.encoder_lr_ratio"
        )


def joint_losses(vqvae: VQVAE, settings: Settings) -> Callable[[ShapeBatch], Losses]:
    """The recipe's loss of a batch of shapes, and what is watched beside it."""
    params = settings.stage2
    size = len(vqvae.quantizer.codebook)

    def losses_of(batch: ShapeBatch) -> Losses:
        output = vqvae(batch.target.band, batch.target.plan)
        losses = vqvae_loss(
            output,
            batch.target,
            recon=params.recon,
            lambda_outside=params.lambda_outside,
            lambda_vq=settings.codebook.lambda_vq,
            lambda_commitment=params.lambda_commitment,
        )
        usage, perplexity = usage_of_batch(output.quantized.indices, size)
        return {
            "loss": losses.total,
            "recon_loss": losses.recon,
            "outside_loss": losses.outside,
            "vq_loss": losses.vq,
            "commitment_loss": losses.commitment,
            "sign_errors": losses.sign_errors,
            "codebook_usage": usage,
            "perplexity": perplexity,
        }

    return losses_of


def load_vqvae() -> VQVAE:
    """What stage 1 left: the imported VAE with the trained codebook."""
    return VQVAE(load_vae(VAE), VectorQuantizer.of(load_codebook()))


def param_groups(vqvae: VQVAE, params: Stage2) -> list[dict[str, Any]]:
    """What is trained and how fast; all else is frozen."""
    vqvae.requires_grad_(False)
    if params.train == "decoder":
        return [{"params": _unfrozen(vqvae.vae.decoder)}]
    codes = _unfrozen(vqvae.quantizer)
    first_frozen_step = params.steps - math.ceil(params.codes_frozen_share * params.steps)
    frozen_from = (first_frozen_step - params.warmup_steps) / (params.steps - params.warmup_steps)
    return [
        {"params": _unfrozen(vqvae.vae.decoder)},
        {"params": _unfrozen(vqvae.vae.encoder), "lr": params.lr * params.encoder_lr_ratio},
        {
            "params": codes,
            "lr": params.lr * params.codebook_lr_ratio,
            "weight_decay": 0.0,
            "schedule": lambda progress: cosine(progress) if progress < frozen_from else 0.0,
        },
    ]


def _unfrozen(module: nn.Module) -> list[nn.Parameter]:
    return list(module.requires_grad_(True).parameters())


def heldout_usage(vqvae: VQVAE, shards: Shards, num_symmetries: int) -> CodebookStatistics:
    """The gate's figures again, of the encoder and the codes as they are now; ranks share the views."""
    device, size = vqvae.quantizer.codebook.device, len(vqvae.quantizer.codebook)
    counts = torch.zeros(size, dtype=torch.int64)
    views = choose_views(shards.names("val"), num_symmetries)
    for latents in encode_views(vqvae.vae, shards, views[rank() :: num_ranks()]):
        indices = vqvae.quantizer.indices_of(latents.mean.to(device))
        counts += torch.bincount(indices, minlength=size).cpu()
    return codebook_statistics(all_reduce_sum(counts))


if __name__ == "__main__":
    run_stage("stage2", stage2)
