"""Train stage 2's network with no codes between encoder and decoder: the control that tells what quantisation costs."""

import json

import torch

from model.checkpoint import load_vae, save_vae
from model.device import pick_device
from model.distributed import in_process_group, rank
from model.files import whole_directory, write_whole
from model.vqvae import UnquantizedTwin
from tasks.data import VALIDATION_FILE
from tasks.joint_training import train_jointly
from tasks.run import METRICS, SDF, TWIN, VAE, Settings, run_stage
from tasks.shards import open_shards
from tasks.training import mean_figures


@in_process_group()
def twin(settings: Settings) -> None:
    shards = open_shards(SDF)
    torch.manual_seed(settings.stage2.seed)
    network = UnquantizedTwin(load_vae(VAE)).to(pick_device())
    inputs = [SDF / "index.parquet", *VAE.iterdir()]
    outcome = train_jointly(network, shards, settings, stage="twin", inputs=inputs)
    if rank() > 0:
        return
    by_shape = {"before": outcome.before, "after": outcome.after}
    with whole_directory(TWIN) as directory:
        save_vae(network.vae, directory)
        write_whole(directory / VALIDATION_FILE, json.dumps(by_shape, indent=1) + "\n")
    figures = {time: mean_figures(shapes) for time, shapes in by_shape.items()}
    write_whole(METRICS / "twin.json", json.dumps(figures, indent=2) + "\n")
    outcome.resume.clear()


if __name__ == "__main__":
    run_stage("twin", twin)
