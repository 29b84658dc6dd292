"""Encode every training and validation shape, under some of the cube's symmetries, so that stage 1 need not."""

import json
from collections.abc import Iterator

import pyarrow as pa

from model.checkpoint import load_vae
from model.device import pick_device
from model.files import whole_directory, write_whole
from model.progress import track
from model.tables import write_rows
from model.vae import SparseSDFVAE
from tasks.data import SCHEMA, choose_views, encode_views, latents_file, to_row
from tasks.run import LATENTS, METRICS, SDF, VAE, Settings, run_stage
from tasks.shards import Shards, open_shards


def encode(settings: Settings) -> None:
    shards = open_shards(SDF)
    vae = load_vae(VAE, device=pick_device())
    num_symmetries = {"train": settings.encode.train_symmetries, "val": settings.encode.heldout_symmetries}
    figures: dict[str, int] = {}
    with whole_directory(LATENTS) as directory:
        for split, num in num_symmetries.items():
            write_rows(latents_file(directory, split), _rows(vae, shards, split, num, figures), SCHEMA)
    figures["latent_channels"] = vae.config.latent_channels
    write_whole(METRICS / "encode.json", json.dumps(figures, indent=2) + "\n")


def _rows(
    vae: SparseSDFVAE, shards: Shards, split: str, num_symmetries: int, figures: dict[str, int]
) -> Iterator[pa.RecordBatch]:
    """Of each shape and symmetry of a split; num_SPLIT_vectors counts the latents."""
    views = choose_views(shards.names(split), num_symmetries)
    figures[f"num_{split}_vectors"] = 0
    for latents in track(encode_views(vae, shards, views), len(views), description=f"encode {split}", unit="view"):
        figures[f"num_{split}_vectors"] += len(latents.mean)
        yield to_row(latents)


if __name__ == "__main__":
    run_stage("encode", encode)
