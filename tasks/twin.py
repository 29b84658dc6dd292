"""Train stage 2's network with no codes between encoder and decoder: the control that tells what quantisation costs."""

from functools import partial

import torch

from model.checkpoint import load_vae, save_vae
from model.device import pick_device
from model.distributed import in_process_group
from model.vqvae import unquantized
from tasks.joint_training import train_jointly
from tasks.run import Settings, paths, run_stage


@in_process_group()
def twin(settings: Settings) -> None:
    torch.manual_seed(settings.stage2.seed)
    network = unquantized(load_vae(paths.VAE)).to(pick_device())
    save = partial(save_vae, network.vae)
    train_jointly(network, settings, stage="twin", inputs=paths.VAE.iterdir(), directory=paths.TWIN, save=save)


if __name__ == "__main__":
    run_stage("twin", twin)
