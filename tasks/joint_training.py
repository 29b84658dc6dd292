"""Encoder and decoder trained together, with codes between them (stage 2) or without (its twin)."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.distributed import global_variance, rank
from model.files import whole_directory, write_whole
from model.quantizer import LAST_MOVE, ResidualQuantizer, TrainedCodebook, history_columns
from model.sparse import SparseTensor
from model.vae import SDFTarget
from model.vqvae import VQVAE, VQVAEOutput, vqvae_loss
from tasks.data import ShapeBatch, training_batches
from tasks.run import Settings, Stage2, paths, write_metrics
from tasks.shards import Shards, open_shards
from tasks.training import (
    Figures,
    History,
    Losses,
    ResumePoint,
    cosine,
    fingerprint,
    mean_figures,
    train,
    validate_each,
)


def train_jointly(
    network: VQVAE,
    settings: Settings,
    *,
    stage: str,
    inputs: Iterable[Path],
    directory: Path,
    save: Callable[[Path], object],
) -> None:
    """Train by the settings of stage 2, on the device where the network is.

    `directory` holds what `save` writes into it and how each validation shape came out before and after; history,
    metrics and saved state are the stage's. `inputs` are the files that the start of the network was made from.
    """
    params, shards = settings.stage2, open_shards(paths.SDF)
    device = next(network.parameters()).device
    if params.recompute:
        network.vae.recompute_activations()
    watch = Watch(network, shards, device)
    resume = ResumePoint(stage, fingerprint(stage, [params, settings.codebook], shards.digest(), inputs))
    before = watch.by_shape()
    steps = JointSteps(network, settings)
    train(
        network,
        param_groups(network, params),
        steps.losses,
        training_batches(shards, params, device),
        settings=params,
        section="stage2",
        resume=resume,
        history=History(paths.METRICS / f"{stage}_history.tsv", settings.tracking),
        validate=watch,
        validate_every=params.validate_every,
        after_step=steps.after,
    )
    by_shape = {"before": before, "after": watch.by_shape()}
    if rank() > 0:
        return
    with whole_directory(directory) as folder:
        save(folder)
        write_whole(folder / paths.VALIDATION_FILE, json.dumps(by_shape, indent=1) + "\n")
    write_metrics(stage, {time: mean_figures(shapes) for time, shapes in by_shape.items()})
    resume.finish()


class JointSteps:
    """What the training loop does with a batch: the losses, then what no gradient does to the codes."""

    def __init__(self, network: VQVAE, settings: Settings):
        self._network, self._settings = network, settings
        self._num_vectors = 0

    def losses(self, batch: ShapeBatch) -> Losses:
        """The recipe's loss of a batch of shapes, and what is watched beside it."""
        params = self._settings.stage2
        output: VQVAEOutput = self._network(batch.target.band, batch.target.plan)
        losses = vqvae_loss(
            output,
            batch.target,
            recon=params.recon,
            lambda_outside=params.lambda_outside,
            lambda_vq=self._settings.codebook.lambda_vq,
            lambda_commitment=params.lambda_commitment,
        )
        self._num_vectors = len(output.quantized.indices)
        return {
            "loss": losses.total,
            "recon_loss": losses.recon,
            "outside_loss": losses.outside,
            "vq_loss": losses.vq,
            "commitment_loss": losses.commitment,
            "sign_errors": losses.sign_errors,
            "latent_variance": global_variance(output.z_e.feats.detach()),
        }

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> Losses:
        codebook, params = _codebook_of(self._network.quantizer), self._settings.stage2
        if codebook is None:
            return {}
        draws = torch.rand(self._num_vectors, dtype=torch.float64, device=codebook.device)
        frozen = params.train == "decoder"
        revived = codebook.end_step(step, params.steps, draws=draws, optimizer=optimizer, frozen=frozen)
        return {"revived_codes": revived} | codebook.rolling_use()


class Watch:
    """Validation shapes through the network as it is now, and how the codes are used on them."""

    def __init__(self, network: VQVAE, shards: Shards, device: torch.device):
        self._network, self._shards, self._device = network, shards, device
        self._indices: list[Tensor] = []

    def by_shape(self) -> dict[str, Figures]:
        self._indices.clear()
        return validate_each(self._decoded, self._shards, self._shards.names("val"), device=self._device)

    def __call__(self) -> Figures:
        figures = mean_figures(self.by_shape())
        columns = history_columns(torch.cat(self._indices), self._network.quantizer.num_codes)
        return figures | {f"val_{name}": float(value) for name, value in columns.items()}

    def _decoded(self, target: SDFTarget) -> SparseTensor:
        output: VQVAEOutput = self._network(target.band, target.plan)
        self._indices.append(output.quantized.indices)
        return output.decoded


def param_groups(network: VQVAE, params: Stage2) -> list[dict[str, Any]]:
    """What is trained by gradients and how fast; all else is left alone by them."""
    codebook = _codebook_of(network.quantizer)
    network.requires_grad_(False)
    groups: list[dict[str, Any]] = [{"params": _unfrozen(network.vae.decoder)}]
    if params.train == "decoder":
        return groups
    groups.append({"params": _unfrozen(network.vae.encoder), "lr": params.lr * params.encoder_lr_ratio})
    if codebook is not None and codebook.by_gradient:
        last_move = (LAST_MOVE * params.steps - params.warmup_steps) / (params.steps - params.warmup_steps)
        groups.append(
            {
                "params": [codes.requires_grad_() for codes in codebook.codebooks],
                "weight_decay": 0.0,
                "schedule": lambda progress: cosine(progress) if progress < last_move else 0.0,
            }
        )
    return groups


def _unfrozen(module: nn.Module) -> list[nn.Parameter]:
    return list(module.requires_grad_(True).parameters())


def _codebook_of(quantizer: ResidualQuantizer) -> TrainedCodebook | None:
    """None where there are no codes, as in the twin."""
    return quantizer if isinstance(quantizer, TrainedCodebook) else None
