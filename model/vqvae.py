"""The VQ-VAE: the VAE's encoder up to the posterior mean, a codebook, the VAE's decoder (ShapeLLM-Omni's recipe)."""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor, nn

from .errors import InputError
from .quantizer import Quantized, VectorQuantizer
from .sparse import Grid, SparseTensor
from .vae import DecodePlan, Recon, SDFTarget, SparseSDFVAE, reconstruction_loss, sign_error_share


class VQVAEOutput(NamedTuple):
    z_e: SparseTensor  # [M, dim], the posterior mean
    quantized: Quantized  # of the same M latent voxels
    decoded: SparseTensor  # [N', 1]


class VQVAE(nn.Module):
    def __init__(self, vae: SparseSDFVAE, quantizer: VectorQuantizer):
        super().__init__()
        dim = quantizer.codebook.shape[1]
        if dim != vae.config.latent_channels:
            raise InputError(
                f"latents have {vae.config.latent_channels} channels but the codes have {dim}; the codebook is another "
                "VAE's: run dvc repro stage1"
            )
        self.vae = vae
        self.quantizer = quantizer

    def encode(self, x: SparseTensor) -> SparseTensor:
        """z_e: the posterior mean, never a sample, so that a shape's tokens are always the same."""
        return self.vae.encode(x).mean

    def decode_indices(self, indices: Int[Tensor, " num_latents"], grid: Grid) -> SparseTensor:
        """What the tokens of the latent voxels of `grid` stand for."""
        return self.vae.decode_in_parts(SparseTensor.on(grid, self.quantizer.codes_of(indices)))

    def forward(self, x: SparseTensor, plan: DecodePlan | None = None) -> VQVAEOutput:
        """Decoded on all 8^3 children of every latent voxel, or by a plan (SDFTarget.plan) on what a loss reads."""
        z_e = self.encode(x)
        quantized = self.quantizer(z_e.feats)
        return VQVAEOutput(z_e, quantized, self.vae.decode(z_e.with_feats(quantized.z_q), plan))


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
) -> VQVAELoss:
    """recon + lambda_outside * outside + lambda_vq * |sg(z_e) - e|^2 + lambda_commitment * |z_e - sg(e)|^2."""
    fit = reconstruction_loss(output.decoded, target, kind=recon)
    vq, commitment = output.quantized.vq_loss, output.quantized.commitment_loss
    total = fit.recon + lambda_outside * fit.outside + lambda_vq * vq + lambda_commitment * commitment
    sign_errors = sign_error_share(fit.matched.detach(), target.band.feats)
    return VQVAELoss(total, fit.recon, fit.outside, vq, commitment, sign_errors, fit.matched)
