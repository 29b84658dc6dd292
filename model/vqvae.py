"""The VQ-VAE: the VAE's encoder up to the posterior mean, a codebook, the VAE's decoder (ShapeLLM-Omni's recipe)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoint import save_weights
from .distributed import global_variance
from .errors import InputError
from .quantizer import Quantized, ResidualQuantizer
from .sparse import Grid, SparseTensor
from .vae import DecodePlan, Recon, SDFTarget, SparseSDFVAE, VAEConfig, reconstruction_loss

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT_VERSION = 2  # of the folder; 1 knew no residual levels


class VQVAEOutput(NamedTuple):
    z_e: SparseTensor  # [M, dim], the posterior mean
    quantized: Quantized  # of the same M latent voxels
    decoded: SparseTensor  # [N', 1]


class VQVAE(nn.Module):
    def __init__(self, vae: SparseSDFVAE, quantizer: ResidualQuantizer):
        super().__init__()
        if quantizer.dim != vae.config.latent_channels:
            raise InputError(
                f"latents have {vae.config.latent_channels} channels but the codes have {quantizer.dim}; the codebook "
                "is another VAE's: run dvc repro stage1"
            )
        self.vae = vae
        self.quantizer = quantizer

    def encode(self, x: SparseTensor) -> SparseTensor:
        """z_e: the posterior mean, never a sample, so that a shape's tokens are always the same."""
        return self.vae.encode(x).mean

    def decode_indices(self, indices: Int[Tensor, "num_latents num_levels"], grid: Grid) -> SparseTensor:
        """What the tokens of the latent voxels of `grid` stand for."""
        return self.vae.decode_in_parts(SparseTensor.on(grid, self.quantizer.codes_of(indices)))

    def forward(self, x: SparseTensor, plan: DecodePlan | None = None) -> VQVAEOutput:
        """Decoded on all 8^3 children of every latent voxel, or by a plan (SDFTarget.plan) on what a loss reads."""
        z_e = self.encode(x)
        quantized = self.quantizer(z_e.feats)
        return VQVAEOutput(z_e, quantized, self.vae.decode(z_e.with_feats(quantized.z_q), plan))


def save_vqvae(vqvae: VQVAE, directory: Path, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Weights in float32 and config.json, which is returned; `more` are further keys of it."""
    config = {
        "version": FORMAT_VERSION,
        "vae": asdict(vqvae.vae.config),
        "codebook": {"num_codes": vqvae.quantizer.num_codes, "dim": vqvae.quantizer.dim},
        **(more or {}),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_weights(vqvae, directory / WEIGHTS_FILE, dtype=torch.float32)
    return config


class Loaded(NamedTuple):
    vqvae: VQVAE
    config: dict[str, Any]


def load_vqvae(directory: Path, *, device: torch.device | str = "cpu") -> Loaded:
    """What save_vqvae wrote. Raises InputError where it is missing, damaged or of another version."""
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
        if config.get("version") != FORMAT_VERSION:
            raise ValueError(f"it is of version {config.get('version', 1)}, expected {FORMAT_VERSION}")
        state = load_file(directory / WEIGHTS_FILE)
        if spoilt := [key for key, value in state.items() if not value.isfinite().all()]:
            raise ValueError(f"NaN or infinity in {spoilt[0]} and {len(spoilt) - 1} more")
        vqvae = VQVAE(SparseSDFVAE(VAEConfig(**config["vae"])), ResidualQuantizer(**config["codebook"]))
        vqvae.load_state_dict(state)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{directory}: no saved network and codes ({reason}); run dvc repro -f stage2") from error
    return Loaded(vqvae.to(device).eval(), config)


class VQVAELoss(NamedTuple):
    total: Tensor
    recon: Tensor
    outside: Tensor
    vq: Tensor
    commitment: Tensor
    sign_errors: Tensor  # share of the band's voxels; watched, not minimised
    matched: Float[Tensor, "num_band 1"]


def vqvae_loss(
    output: VQVAEOutput,
    target: SDFTarget,
    *,
    recon: Recon,
    lambda_outside: float,
    lambda_vq: float,
    lambda_commitment: float,
    in_units_of_variance: bool = False,
) -> VQVAELoss:
    """recon + lambda_outside * outside + lambda_vq * |sg(z_e) - e|^2 + lambda_commitment * |z_e - sg(e)|^2.

    In units of the variance that the batch's latents have now, the commitment does not depend on their scale.
    """
    fit = reconstruction_loss(output.decoded, target, kind=recon)
    vq, commitment = output.quantized.vq_loss, output.quantized.commitment_loss
    unit = global_variance(output.z_e.feats.detach()) if in_units_of_variance else 1.0
    total = fit.recon + lambda_outside * fit.outside + lambda_vq * vq + lambda_commitment / unit * commitment
    return VQVAELoss(total, fit.recon, fit.outside, vq, commitment, fit.sign_errors, fit.matched)
