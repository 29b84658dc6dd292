"""Train a VAE on the shards, from nothing or from weights there are; it made the shipped small VAE too."""

import math
from functools import partial
from pathlib import Path

import torch
from torch import nn

from model.checkpoint import import_checkpoint, save_vae
from model.device import pick_device
from model.distributed import in_process_group, rank
from model.errors import InputError
from model.files import whole_directory
from model.sparse import SparseTensor
from model.vae import SDFTarget, SparseSDFVAE, VAEConfig, kl_divergence, reconstruction_loss, sample
from tasks.data import ShapeBatch, training_batches
from tasks.run import PretrainVae, Settings, paths, run_stage, write_metrics
from tasks.shards import open_shards
from tasks.training import History, Losses, ResumePoint, fingerprint, train, validate

INITIAL_LOGVAR = -4.0  # posterior deviations start at 0.14, so that the decoder sees the means from the start


@in_process_group()
def pretrain_vae(settings: Settings) -> None:
    params = settings.pretrain_vae
    shards = open_shards(paths.SDF)
    device = pick_device()
    torch.manual_seed(params.seed)
    vae, inputs = starting_point(params)
    vae.to(device)
    if params.recompute:
        vae.recompute_activations()

    def losses_of(batch: ShapeBatch) -> Losses:
        posterior = vae.encode(batch.target.band)
        fit = reconstruction_loss(vae.decode(sample(posterior), batch.target.plan), batch.target, kind=params.recon)
        kl = kl_divergence(posterior)
        return {
            "loss": fit.recon + params.lambda_outside * fit.outside + params.lambda_kl * kl,
            "recon_loss": fit.recon,
            "outside_loss": fit.outside,
            "kl": kl,
            "sign_errors": fit.sign_errors,
        }

    def reconstruct(target: SDFTarget) -> SparseTensor:
        return vae.decode(vae.encode(target.band).mean, target.plan)

    check = partial(validate, reconstruct, shards, shards.names("val"), device=device)
    resume = ResumePoint("pretrain_vae", fingerprint("pretrain_vae", [params], shards.digest(), inputs))
    train(
        vae,
        [{"params": list(vae.parameters())}],
        losses_of,
        training_batches(shards, params, device),
        settings=params,
        section="pretrain_vae",
        resume=resume,
        history=History(paths.METRICS / "pretrain_vae_history.tsv", settings.tracking),
        validate=check,
        validate_every=params.validate_every,
    )
    figures = check()
    if rank() > 0:
        return
    with whole_directory(paths.PRETRAINED) as directory:
        save_vae(vae, directory)
    write_metrics("pretrain_vae", figures)
    resume.finish()


def starting_point(params: PretrainVae) -> tuple[SparseSDFVAE, list[Path]]:
    """The network to train and the files that its weights are from. Raises InputError."""
    config = VAEConfig(params.model_channels, params.num_blocks, params.latent_channels)
    if params.start_from is None:
        vae = SparseSDFVAE(config)
        wake_posterior(vae)
        return vae, []
    imported = import_checkpoint(params.start_from)
    if imported.vae.config != config:
        raise InputError(
            f"the VAE of pretrain_vae.start_from ({params.start_from}) is {imported.vae.config} but pretrain_vae asks "
            f"for {config}; set model_channels, num_blocks and latent_channels to its values, or start_from: null"
        )
    return imported.vae, [imported.file]


def wake_posterior(vae: SparseSDFVAE) -> None:
    """Replace the published zero initialisation of the encoder's last layer by one that passes on what it sees."""
    layer = vae.encoder.out_layer
    num_latent = vae.config.latent_channels
    nn.init.normal_(layer.weight[:num_latent], std=1 / math.sqrt(layer.in_features))
    nn.init.constant_(layer.bias[num_latent:], INITIAL_LOGVAR)


if __name__ == "__main__":
    run_stage("pretrain_vae", pretrain_vae)
