"""A tokenizer of random weights, made once."""

from copy import deepcopy
from functools import cache

import pytest
import torch

from model.quantizer import ResidualQuantizer
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE
from tests.shapes import as_target, ring_and_box, voxelized

RESOLUTION = 32


@cache
@torch.no_grad()
def network_of(seed: int) -> VQVAE:
    """Half of what it decodes is negative: its meshes are rubbish, but they are there."""
    torch.manual_seed(seed)
    vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=8))
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    torch.nn.init.normal_(vae.decoder.out_layer.weight)
    quantizer = ResidualQuantizer([64], 8)
    torch.nn.init.normal_(quantizer.codebooks[0])
    vqvae = VQVAE(vae, quantizer)
    decoded = vqvae(as_target(voxelized(ring_and_box())).band).decoded.feats
    vae.decoder.out_layer.bias -= torch.atanh(decoded.median())
    return vqvae


def tokenizer_of(seed: int = 0) -> ShapeTokenizer:
    """One of its own, whose weights may be changed."""
    vqvae = deepcopy(network_of(seed))
    return ShapeTokenizer(vqvae, resolution=RESOLUTION, truncation_voxels=2.0, mode="solid", max_bad_flip_ratio=0.03)


@pytest.fixture(scope="session")
def tokenizer() -> ShapeTokenizer:
    return tokenizer_of()


@pytest.fixture(scope="session")
def tokens(tokenizer: ShapeTokenizer) -> Tokens:
    return tokenizer.encode(ring_and_box())
