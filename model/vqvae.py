"""The VQ-VAE: the VAE's encoder up to the posterior mean, a codebook, the VAE's decoder (ShapeLLM-Omni's recipe)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from .bricks import BRICK_SIZE
from .checkpoint import (
    CONFIG_FILE,
    MAX_BLOCKS,
    MAX_CHANNELS,
    WEIGHTS_FILE,
    aligned,
    check_keys,
    read_architecture,
    save_weights,
)
from .errors import InputError, reading
from .files import digest_of, write_whole
from .quantizer import Quantized, ResidualQuantizer
from .sparse import Grid, SparseTensor
from .tensors import read_tensors
from .vae import HEAD_CHANNELS, DecodePlan, Recon, SDFTarget, SparseSDFVAE, VAEConfig, reconstruction_loss

REMEDY = "run dvc repro -f stage2"
FINGERPRINT_DIGITS = 16
GRID_KEYS = ("resolution", "truncation_voxels", "mode", "max_bad_flip_ratio")
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


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


def unquantized(vae: SparseSDFVAE) -> VQVAE:
    """With no codes between encoder and decoder: what codes cost is against that."""
    return VQVAE(vae, ResidualQuantizer([], vae.config.latent_channels))


class _VAEConfig(BaseModel):
    model_config = _STRICT
    model_channels: Annotated[int, Field(ge=HEAD_CHANNELS, le=MAX_CHANNELS, multiple_of=HEAD_CHANNELS)]
    num_blocks: Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
    latent_channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class _CodebookConfig(BaseModel):
    model_config = _STRICT
    num_codes: Annotated[list[Annotated[int, Field(ge=1, le=2**24)]], Field(min_length=1, max_length=64)]
    dim: Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class Config(BaseModel):
    """config.json. Only that of a tokenizer says how its grids are made, as model.sdf.voxelize is told."""

    model_config = _STRICT
    version: Literal[3]  # of the folder; 1 knew no residual levels, 2 no fingerprint
    vae: _VAEConfig
    codebook: _CodebookConfig
    resolution: Annotated[int, Field(ge=BRICK_SIZE, le=2048, multiple_of=BRICK_SIZE)] | None = None
    truncation_voxels: Annotated[float, Field(gt=0, le=64)] | None = None
    mode: Literal["auto", "solid", "shell"] | None = None
    max_bad_flip_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    fingerprint: str | None = None

    @property
    def grid(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in GRID_KEYS}

    def fingerprint_with(self, digest: str) -> str:
        """Of all the rest, and of weights with this digest."""
        rest = self.model_dump(exclude={"fingerprint"}, exclude_none=True)
        return digest_of([json.dumps(rest, sort_keys=True), digest])[-FINGERPRINT_DIGITS:]


def config_of(vqvae: VQVAE, digest: str, grid: Mapping[str, Any] | None = None) -> Config:
    """Of a network whose weights have this digest, with its fingerprint."""
    codebook = {"num_codes": vqvae.quantizer.num_codes, "dim": vqvae.quantizer.dim}
    config = Config(version=3, vae=asdict(vqvae.vae.config), codebook=codebook, **(grid or {}))
    return config.model_copy(update={"fingerprint": config.fingerprint_with(digest)})


def save_vqvae(
    vqvae: VQVAE, directory: Path, grid: Mapping[str, Any] | None = None, *, dtype: torch.dtype = torch.float32
) -> Config:
    """Weights, in float32 or float16, and config.json, which is returned; `grid` is that of a tokenizer."""
    if dtype not in (torch.float32, torch.float16):
        raise InputError(f"weights can't be saved as {dtype}; expected torch.float32 or float16; choose one")
    directory.mkdir(parents=True, exist_ok=True)
    digest = save_weights(vqvae, directory / WEIGHTS_FILE, dtype=dtype)
    config = config_of(vqvae, digest, grid)
    write_whole(directory / CONFIG_FILE, config.model_dump_json(indent=2, exclude_none=True) + "\n")
    return config


class Loaded(NamedTuple):
    vqvae: VQVAE
    config: Config


def load_vqvae(directory: Path, *, device: torch.device | str = "cpu") -> Loaded:
    """What save_vqvae wrote. Raises InputError where it is missing, damaged, of another version or put together."""
    config = _read_config(directory / CONFIG_FILE)
    weights = read_tensors(directory / WEIGHTS_FILE, remedy=REMEDY, ours=True)
    if config.fingerprint_with(weights.digest) != config.fingerprint:
        raise InputError(f"{directory}: {CONFIG_FILE} and {WEIGHTS_FILE} are not those saved together; {REMEDY}")
    sizes = VAEConfig(**config.vae.model_dump())
    found = read_architecture(weights.tensors, directory / WEIGHTS_FILE, prefix="vae.")
    if found != sizes:
        raise InputError(f"{directory}: {CONFIG_FILE} says {sizes} but {WEIGHTS_FILE} is of {found}; {REMEDY}")
    with torch.device("meta"):  # the weights are those of the file, none are drawn
        vqvae = VQVAE(SparseSDFVAE(sizes), ResidualQuantizer(**config.codebook.model_dump()))
    check_keys(weights.tensors, vqvae, directory / WEIGHTS_FILE)
    vqvae.load_state_dict({name: aligned(tensor) for name, tensor in weights.tensors.items()}, assign=True)
    return Loaded(vqvae.to(device).eval(), config)


def _read_config(file: Path) -> Config:
    with reading(file, REMEDY):
        text = file.read_bytes()
    try:
        return Config.model_validate_json(text)
    except ValidationError as error:
        if b'"latent_channels"' in text and b'"codebook"' not in text:
            raise InputError(f"{file}: it is of a VAE, as the twin is, which has no codes") from error
        first = error.errors(include_url=False)[0]
        key, got = ".".join(map(str, first["loc"])) or "it", repr(first["input"])[:40]
        raise InputError(f"{file}: {key} is {got} ({first['msg']}); {REMEDY}") from error


class VQVAELoss(NamedTuple):
    total: Float[Tensor, ""]
    recon: Float[Tensor, ""]
    outside: Float[Tensor, ""]
    vq: Float[Tensor, ""]
    commitment: Float[Tensor, ""]
    sign_errors: Float[Tensor, ""]  # share of the band's voxels; watched, not minimised
    matched: Float[Tensor, "num_band 1"]


def vqvae_loss(
    output: VQVAEOutput,
    target: SDFTarget,
    *,
    recon: Recon,
    lambda_outside: float,
    lambda_vq: float,
    lambda_commitment: float,
) -> VQVAELoss:
    """recon + lambda_outside * outside + lambda_vq * |sg(z_e) - e|^2 + lambda_commitment * |z_e - sg(e)|^2."""
    fit = reconstruction_loss(output.decoded, target, kind=recon)
    vq, commitment = output.quantized.vq_loss, output.quantized.commitment_loss
    total = fit.recon + lambda_outside * fit.outside + lambda_vq * vq + lambda_commitment * commitment
    return VQVAELoss(total, fit.recon, fit.outside, vq, commitment, fit.sign_errors, fit.matched)
