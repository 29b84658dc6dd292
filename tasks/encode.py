"""Encode every training and validation shape once, so that stage 1 never runs the network."""

import json
from collections.abc import Iterator

import numpy as np
import pyarrow.parquet as pq
import torch

from model.checkpoint import load_vae
from model.symmetry import SYMMETRIES
from model.vae import SparseSDFVAE
from model.vqvae import refuse_zero_latents
from tasks.dataset import View, sdf_target
from tasks.latents import SCHEMA, ShapeLatents, latents_file, to_row
from tasks.paths import LATENTS, METRICS, SDF, VAE
from tasks.progress import track
from tasks.settings import Settings
from tasks.shards import Shards, open_shards
from tasks.stage import run_stage, whole_directory, write_whole
from tasks.training import pick_device


def encode(settings: Settings) -> None:
    shards = open_shards(SDF)
    vae = load_vae(VAE, device=pick_device())
    num_symmetries = {"train": settings.encode.train_symmetries, "val": settings.encode.heldout_symmetries}
    figures = {}
    with whole_directory(LATENTS) as directory:
        for split, num in num_symmetries.items():
            views = choose_views(shards.names(split), num)
            num_vectors = 0
            with pq.ParquetWriter(latents_file(directory, split), SCHEMA, compression="zstd") as writer:
                encoded = encode_views(vae, shards, views)
                for latents in track(encoded, len(views), description=f"encode {split}", unit="view"):
                    refuse_zero_latents(latents.mean)
                    writer.write_batch(to_row(latents))
                    num_vectors += len(latents.mean)
            figures[f"num_{split}_vectors"] = num_vectors
    figures["latent_channels"] = vae.config.latent_channels
    write_whole(METRICS / "encode.json", json.dumps(figures, indent=2) + "\n")


def choose_views(names: list[str], num_symmetries: int) -> list[View]:
    """The same symmetries for every shape: the shape as it is first, then a fixed random order of the other 47."""
    others = np.random.default_rng(0).permutation(np.arange(1, len(SYMMETRIES)))
    symmetries = [0, *others.tolist()][:num_symmetries]
    return [View(name, symmetry) for name in names for symmetry in symmetries]


@torch.no_grad()
def encode_views(vae: SparseSDFVAE, shards: Shards, views: list[View]) -> Iterator[ShapeLatents]:
    """Posterior means, one view after the other."""
    device = next(vae.parameters()).device
    for view in views:
        band = sdf_target(shards.read(view.name), symmetry=view.symmetry).band.to(device)
        mean = vae.encode(band).mean
        yield ShapeLatents(view.name, view.symmetry, mean.coords[:, 1:].cpu(), mean.feats.cpu())


if __name__ == "__main__":
    run_stage("encode", encode)
