"""The sparse-SDF VAE of Direct3D-S2: encoder, decoder, and the loss of a reconstruction.

Parameter names are the published ones, and checkpoints depend on them. Stands on model.sparse.
"""

from .layers import HEAD_CHANNELS
from .losses import Recon, SDFTarget, reconstruction_loss
from .network import SparseSDFVAE, VAEConfig, kl_divergence, memory_to_decode, refuse_zero_latents, sample
from .receptive_field import DecodePlan

__all__ = [
    "HEAD_CHANNELS",
    "DecodePlan",
    "Recon",
    "SDFTarget",
    "SparseSDFVAE",
    "VAEConfig",
    "kl_divergence",
    "memory_to_decode",
    "reconstruction_loss",
    "refuse_zero_latents",
    "sample",
]
