"""Encode every training and validation shape, under some of the cube's symmetries, so that stage 1 need not."""

from itertools import islice
from pathlib import Path

import torch

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import LONG_TIMEOUT, all_reduce_sum, in_process_group, own_span, rank, shared
from model.files import whole_directory
from model.progress import track
from model.vae import SparseSDFVAE
from tasks.data import View, choose_views, encode_views, latents_file, write_latents
from tasks.run import Settings, paths, run_stage, write_metrics
from tasks.shards import Shards, open_shards

VIEWS_PER_FILE = 128


@in_process_group(LONG_TIMEOUT)
def encode(settings: Settings) -> None:
    shards = open_shards(paths.SDF)
    vae = load_vae(paths.VAE, device=pick_device())
    num_symmetries = {"train": settings.encode.train_symmetries, "val": settings.encode.heldout_symmetries}
    figures = {}
    with shared(lambda: whole_directory(paths.LATENTS)) as directory:
        for split, num in num_symmetries.items():
            own = encode_split(vae, shards, split, choose_views(shards.names(split), num), directory)
            figures[f"num_{split}_vectors"] = int(all_reduce_sum(torch.tensor(own)))
    figures["latent_channels"] = vae.config.latent_channels
    if rank() == 0:
        write_metrics("encode", figures)


def encode_split(vae: SparseSDFVAE, shards: Shards, split: str, views: list[View], directory: Path) -> int:
    """Write this rank's files: neither they nor what is encoded together depend on how many ranks there are.

    Returns the number of vectors in them.
    """
    files = [views[i : i + VIEWS_PER_FILE] for i in range(0, len(views), VIEWS_PER_FILE)] or [[]]
    own = own_span([int(shards.index.num_voxels[[view.name for view in of_file]].sum()) for of_file in files])
    own_views = [view for number in own for view in files[number]]
    encoded = encode_views(vae, shards, own_views, block=VIEWS_PER_FILE)
    shown = track(encoded, len(own_views), description=f"encode {split}", unit="view")
    return sum(
        write_latents(latents_file(directory, split, number, len(files)), islice(shown, len(files[number])))
        for number in own
    )


if __name__ == "__main__":
    run_stage("encode", encode)
