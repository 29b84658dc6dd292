"""Decide on held-out shapes whether what stage 2 made may be called a finished tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.device import pick_device
from model.errors import InputError, reading
from model.files import whole_directory, write_whole
from model.metrics import summarise_change
from model.tokenizer import ShapeTokenizer
from model.vae import SparseSDFVAE
from model.vqvae import load_vqvae
from tasks.data import choose_views, encode_views
from tasks.judging import Check, Remedies, judge, lloyd_passes, refuse_failed, verdict
from tasks.run import FinalGate, Settings, paths, run_stage, write_metrics
from tasks.shards import Shards, open_shards

VERDICT_FILE = "verdict.json"
OF_STAGE2 = Remedies(
    unused="let the codes follow (codebook.update: ema, codebook.revive_below: 0.5), hold the encoder by a higher "
    "stage2.lambda_commitment or a lower stage2.encoder_lr_ratio, or raise stage2.steps",
    one_takes_all="the encoder has drawn its latents together; lower stage2.lr or stage2.lambda_commitment",
    no_carry_over="the codes do not carry over to unseen shapes; add meshes, or lower codebook.num_codes",
    duplicates="lower stage2.lambda_commitment, or codebook.num_codes",
)


def final_gate(settings: Settings) -> None:
    """Write metrics/final_gate.json always, the tokenizer with its card and verdict only when every figure is good."""
    params, shards = settings.final_gate, open_shards(paths.SDF)
    vqvae, _ = load_vqvae(paths.STAGE2, device=pick_device())
    codebooks = [codes.detach().cpu() for codes in vqvae.quantizer.codebooks]
    seen = lloyd_passes(codebooks, _latents(vqvae.vae, shards, "train", 1))
    heldout = lloyd_passes(codebooks, _latents(vqvae.vae, shards, "val", settings.encode.heldout_symmetries))
    checks = judge(params, "final_gate", codebooks, OF_STAGE2, seen=seen, heldout=heldout)
    checks.append(gain_over_stage1(_read_json(paths.STAGE2 / paths.VALIDATION_FILE, "stage2"), params))
    figures = verdict(checks)
    write_metrics("final_gate", figures)
    refuse_failed(checks, "the tokenizer")
    tokenizer = ShapeTokenizer(
        vqvae,
        resolution=shards.resolution,
        truncation_voxels=shards.truncation_voxels,
        mode=settings.voxelize.mode,
        max_bad_flip_ratio=settings.voxelize.max_bad_flip_ratio,
    )
    card = _read_json(paths.METRICS / "evaluate.json", "evaluate") | {"final gate": figures}
    with whole_directory(paths.TOKENIZER) as directory:
        tokenizer.save_pretrained(directory, card)
        write_whole(directory / VERDICT_FILE, json.dumps(figures, indent=2) + "\n")


def gain_over_stage1(validation: Mapping[str, Mapping[str, Mapping[str, float]]], params: FinalGate) -> Check:
    """How much lower stage 2 left the L1 of validation shapes: at least, with 95 % confidence, paired by shape.

    The bootstrap is over shapes, so that shapes that are hard for both count for nothing (model.metrics).
    """
    before, after = ([shape["val_l1"] for shape in validation[time].values()] for time in ("before", "after"))
    change = summarise_change(before, after, seed=0)
    assert change is not None
    remedy = (
        f"the mean went from {change.old_mean:.4f} to {change.new_mean:.4f} over {change.num_shapes} shapes; raise "
        "stage2.steps, try another stage2.lr, or add validation shapes"
    )
    return Check("l1_gain", -change.ci_high, params.min_l1_gain, "final_gate.min_l1_gain", True, remedy)


def _latents(
    vae: SparseSDFVAE, shards: Shards, split: str, num_symmetries: int
) -> Float[Tensor, "num_latents latent_channels"]:
    views = choose_views(shards.names(split), num_symmetries)
    latents = torch.cat([view.mean for view in encode_views(vae, shards, views)])
    if not latents.isfinite().all():
        raise InputError(f"latents of {split} shapes hold NaN or infinity; lower stage2.lr, then run dvc repro stage2")
    return latents


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    with reading(path, f"run dvc repro -f {stage}"):
        return json.loads(path.read_text())


if __name__ == "__main__":
    run_stage("final_gate", final_gate)
