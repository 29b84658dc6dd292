"""Train a VAE from nothing on the shards, for users without weights of their own; it made the shipped small VAE too."""

import math

import torch
from torch import nn

from model.checkpoint import save_vae
from model.device import pick_device
from model.distributed import in_process_group, rank
from model.files import whole_directory
from model.vae import SparseSDFVAE, VAEConfig, kl_divergence, reconstruction_loss, sample
from tasks.data import ShapeBatch, training_batches
from tasks.run import METRICS, PRETRAINED, SDF, Settings, run_stage, write_metrics
from tasks.shards import open_shards
from tasks.training import History, Losses, ResumePoint, fingerprint, train, validate

INITIAL_LOGVAR = -4.0  # posterior deviations start at 0.14, so that the decoder sees the means from the start


@in_process_group()
def pretrain_vae(settings: Settings) -> None:
    params = settings.pretrain_vae
    shards = open_shards(SDF)
    device = pick_device()
    torch.manual_seed(params.seed)
    vae = SparseSDFVAE(VAEConfig(params.model_channels, params.num_blocks, params.latent_channels))
    wake_posterior(vae)
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

    def check() -> dict[str, float]:
        return validate(
            lambda target: vae.decode(vae.encode(target.band).mean, target.plan),
            shards,
            shards.names("val"),
            device=device,
        )

    resume = ResumePoint("pretrain_vae", fingerprint("pretrain_vae", [params], [SDF / "index.parquet"]))
    train(
        vae,
        [{"params": list(vae.parameters())}],
        losses_of,
        training_batches(shards, params, device),
        settings=params,
        resume=resume,
        history=History(METRICS / "pretrain_vae_history.tsv"),
        validate=check,
        validate_every=params.validate_every,
        description="pretrain_vae",
    )
    figures = check()
    if rank() > 0:
        return
    with whole_directory(PRETRAINED) as directory:
        save_vae(vae, directory)
    write_metrics("pretrain_vae", figures)
    resume.clear()


def wake_posterior(vae: SparseSDFVAE) -> None:
    """Replace the published zero initialisation of the encoder's last layer by one that passes on what it sees."""
    layer = vae.encoder.out_layer
    num_latent = vae.config.latent_channels
    nn.init.normal_(layer.weight[:num_latent], std=1 / math.sqrt(layer.in_features))
    nn.init.constant_(layer.bias[num_latent:], INITIAL_LOGVAR)


if __name__ == "__main__":
    run_stage("pretrain_vae", pretrain_vae)
