"""Encode every training and validation shape, under some of the cube's symmetries, so that stage 1 need not."""

from model.checkpoint import load_vae
from model.device import pick_device
from model.files import whole_directory
from model.progress import track
from tasks.data import choose_views, encode_views, latents_file, write_latents
from tasks.run import LATENTS, SDF, VAE, Settings, run_stage, write_metrics
from tasks.shards import open_shards


def encode(settings: Settings) -> None:
    shards = open_shards(SDF)
    vae = load_vae(VAE, device=pick_device())
    num_symmetries = {"train": settings.encode.train_symmetries, "val": settings.encode.heldout_symmetries}
    figures = {}
    with whole_directory(LATENTS) as directory:
        for split, num in num_symmetries.items():
            views = choose_views(shards.names(split), num)
            encoded = track(encode_views(vae, shards, views), len(views), description=f"encode {split}", unit="view")
            figures[f"num_{split}_vectors"] = write_latents(latents_file(directory, split), encoded)
    figures["latent_channels"] = vae.config.latent_channels
    write_metrics("encode", figures)


if __name__ == "__main__":
    run_stage("encode", encode)
