"""Encoder and decoder trained together, with codes between them (stage 2) or without (its twin)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.distributed import global_variance
from model.quantizer import LAST_MOVE, TrainedCodebook, use_of_levels
from model.sparse import SparseTensor
from model.vae import SDFTarget
from model.vqvae import VQVAE, UnquantizedTwin, VQVAEOutput, vqvae_loss
from tasks.data import Codebooks, ShapeBatch, training_batches
from tasks.run import METRICS, Codebook, Settings, Stage2
from tasks.shards import Shards
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


@dataclass(frozen=True)
class Outcome:
    """Validation figures of each shape, before training and after."""

    before: dict[str, Figures]
    after: dict[str, Figures]
    resume: ResumePoint  # to be cleared once the result is written


def train_jointly(
    network: VQVAE | UnquantizedTwin, shards: Shards, settings: Settings, *, stage: str, inputs: Iterable[Path]
) -> Outcome:
    """Train by the settings of stage 2, on the device where the network is; history and saved state are the stage's."""
    params = settings.stage2
    device = next(network.parameters()).device
    if params.recompute:
        network.vae.recompute_activations()
    watch = Watch(network, shards, device)
    resume = ResumePoint(stage, fingerprint(stage, [params, settings.codebook], inputs))
    before = watch.by_shape()
    steps = JointSteps(network, settings)
    train(
        network,
        param_groups(network, params),
        steps.losses,
        training_batches(shards, params, device),
        settings=params,
        resume=resume,
        history=History(METRICS / f"{stage}_history.tsv"),
        validate=watch,
        validate_every=params.validate_every,
        after_step=steps.after,
        description=stage,
    )
    return Outcome(before, watch.by_shape(), resume)


class JointSteps:
    """What the training loop does with a batch: the losses, then what no gradient does to the codes."""

    def __init__(self, network: VQVAE | UnquantizedTwin, settings: Settings):
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
            in_units_of_variance=params.commitment_unit == "variance",
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
        } | use_of_levels(output.quantized.indices, _sizes(self._network))

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> Losses:
        codebook, params = _codebook(self._network), self._settings.stage2
        if codebook is None or params.train == "decoder":
            return {}
        draws = torch.rand(self._num_vectors, dtype=torch.float64, device=codebook.device)
        return {"revived_codes": codebook.end_step(step, params.steps, draws=draws, optimizer=optimizer)}


class Watch:
    """Validation shapes through the network as it is now, and how the codes are used on them."""

    def __init__(self, network: VQVAE | UnquantizedTwin, shards: Shards, device: torch.device):
        self._network, self._shards, self._device = network, shards, device
        self._indices: list[Tensor] = []

    def by_shape(self) -> dict[str, Figures]:
        self._indices.clear()
        return validate_each(self._decoded, self._shards, self._shards.names("val"), device=self._device)

    def __call__(self) -> Figures:
        figures = mean_figures(self.by_shape())
        columns = use_of_levels(torch.cat(self._indices), _sizes(self._network))
        return figures | {f"val_{name}": float(value) for name, value in columns.items()}

    def _decoded(self, target: SDFTarget) -> SparseTensor:
        output: VQVAEOutput = self._network(target.band, target.plan)
        self._indices.append(output.quantized.indices)
        return output.decoded


def new_codebook(codebooks: Codebooks, params: Codebook) -> TrainedCodebook:
    """These codes, to be trained on."""
    return TrainedCodebook(codebooks, update=params.update, decay=params.ema_decay, revive_below=params.revive_below)


def param_groups(network: VQVAE | UnquantizedTwin, params: Stage2) -> list[dict[str, Any]]:
    """What is trained by gradients and how fast; all else is left alone by them."""
    codebook = _codebook(network)
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


def _codebook(network: VQVAE | UnquantizedTwin) -> TrainedCodebook | None:
    if isinstance(network, UnquantizedTwin):
        return None
    assert isinstance(network.quantizer, TrainedCodebook)
    return network.quantizer


def _sizes(network: VQVAE | UnquantizedTwin) -> list[int]:
    return [] if isinstance(network, UnquantizedTwin) else network.quantizer.num_codes
