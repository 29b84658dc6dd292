"""Stage 1 as the original recipe has it: what a step through the frozen network takes. A part of codebook.py."""

from itertools import islice

import torch
from torch import nn

from benchmarks.measure import timed
from model.checkpoint import load_vae
from model.quantizer import VectorQuantizer
from model.vae import SDFTarget, reconstruction_loss
from model.vqvae import VQVAE
from tasks.data import load_targets
from tasks.data.dataset import load_batches
from tasks.run import SDF, VAE, Settings
from tasks.shards import open_shards


def measure_recipe(settings: Settings, device: torch.device) -> dict:
    """A step of stage 1 as the recipe has it: encoder, quantizer and decoder, the codes alone trained.

    Some steps are timed, and the time of settings.stage1.steps follows. On one shape, and on a batch of stage 2's: its
    time for each latent vector says what a step on as many vectors as ours would take.
    """
    vae = load_vae(VAE, device=device).requires_grad_(False)
    quantizer = VectorQuantizer(settings.codebook.num_codes, vae.config.latent_channels).to(device)
    nn.init.uniform_(quantizer.codebook, -1 / settings.codebook.num_codes, 1 / settings.codebook.num_codes)
    network = VQVAE(vae, quantizer)
    shards = open_shards(SDF)
    names = shards.names("train")
    targets = list(load_targets(shards, names[:: max(1, len(names) // 16)][:16], device=device))
    batches = [batch.target for batch in islice(load_batches(shards, settings.stage2, start=0, device=device), 2)]
    optimizer = torch.optim.AdamW(quantizer.parameters())

    def steps(targets: list[SDFTarget]) -> int:
        num_latents = 0
        for target in targets:
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                output = network(target.band, target.plan)
                fit = reconstruction_loss(output.decoded, target, kind="l1+l2")
                loss = fit.recon + output.quantized.vq_loss + output.quantized.commitment_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_latents += len(output.quantized.indices)
        return num_latents

    def encode() -> None:
        with torch.no_grad():
            for target in targets:
                vae.encode(target.band)

    per_step = timed(lambda: steps(targets), device, 3) / len(targets)
    per_batch = timed(lambda: steps(batches), device, 3) / len(batches)
    latents_of_batch = steps(batches) / len(batches)
    views = len(names) * settings.encode.train_symmetries
    return {
        "row": "recipe",
        "timed_steps_one_shape": len(targets),
        "timed_steps_batch": len(batches),
        "ms_per_step_one_shape": per_step,
        "latents_of_one_shape": steps(targets) / len(targets),
        "seconds_for_the_steps": per_step * settings.stage1.steps / 1000,
        "ms_per_step_batch": per_batch,
        "latents_of_batch": latents_of_batch,
        "seconds_for_the_steps_on_our_batch": (
            per_batch * settings.stage1.batch_size / latents_of_batch * settings.stage1.steps / 1000
        ),
        "ms_to_encode_one_shape": timed(encode, device, 3) / len(targets),
        "num_views_encoded_once": views,
    }
