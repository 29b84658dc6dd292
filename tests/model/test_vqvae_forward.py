"""One pass forward and back through the VQ-VAE on a real shape, every intermediate shape held against this table.

| what                | shape    | with                                                     |
| input               | [N, 1]   | the band's voxels, the stored SDF value                  |
| latents z_e         | [M, dim] | the posterior mean, one per occupied 8^3 brick           |
| quantized z_q       | [M, dim] | the nearest of the codebook's codes                      |
| decoded             | [N', 1]  | all 8^3 children of every latent voxel: N' = 512 M > N   |
| matched             | [N, 1]   | the decoded values at the input's voxels                 |
"""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from model.errors import InputError
from model.quantizer import ResidualQuantizer, nearest_codes
from model.sparse import batch_tensors, find_rows
from model.sparse.norm import MAX_GROUPS
from model.vae import SDFTarget, SparseSDFVAE, VAEConfig, refuse_zero_latents
from model.vqvae import VQVAE, VQVAELoss, VQVAEOutput, vqvae_loss
from tests.shapes import as_target, by_coords, relative_error, ring_and_box, voxelized

CODEBOOK_SIZE, DIM = 32, 8
CONFIG = VAEConfig(model_channels=64, num_blocks=1, latent_channels=DIM)


class Pass(NamedTuple):
    vqvae: VQVAE
    target: SDFTarget
    output: VQVAEOutput
    losses: VQVAELoss


def random_vqvae() -> VQVAE:
    torch.manual_seed(0)
    vae = SparseSDFVAE(CONFIG)
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    quantizer = ResidualQuantizer([CODEBOOK_SIZE], DIM)
    torch.nn.init.normal_(quantizer.codebooks[0])
    return VQVAE(vae, quantizer)


@pytest.fixture(scope="module")
def target() -> SDFTarget:
    return as_target(voxelized(ring_and_box()))


@pytest.fixture(scope="module")
def done(target: SDFTarget) -> Pass:
    vqvae = random_vqvae()
    output = vqvae(target.band, target.plan)
    losses = vqvae_loss(output, target, recon="l1+l2", lambda_outside=0.1, lambda_vq=1.0, lambda_commitment=0.25)
    losses.total.backward()
    return Pass(vqvae, target, output, losses)


# --- forward ---------------------------------------------------------------------------------------------------------


def test_input_is_one_value_per_band_voxel(done):
    num_band = len(done.target.band.coords)
    assert done.target.band.feats.shape == (num_band, 1)
    assert num_band > 5000


def test_latents_are_dim_channels_per_brick(done):
    num_latents = len((done.target.band.coords // 8).unique(dim=0))
    assert done.output.z_e.feats.shape == (num_latents, DIM)
    assert done.output.z_e.feats.dtype == torch.float32


def test_quantized_latents_are_codes_of_the_same_shape(done):
    num_latents = len(done.output.z_e.coords)
    quantized, codebook = done.output.quantized, done.vqvae.quantizer.codebooks[0]
    assert quantized.z_q.shape == (num_latents, DIM)
    assert quantized.indices.shape == (num_latents, 1)
    assert quantized.indices.min() >= 0
    assert quantized.indices.max() < CODEBOOK_SIZE
    assert torch.equal(quantized.z_q, codebook[quantized.indices[:, 0]])
    assert torch.equal(quantized.indices[:, 0], nearest_codes(done.output.z_e.feats, codebook))


def test_decoded_voxels_outnumber_the_input(done):
    num_band, num_latents = len(done.target.band.coords), len(done.output.z_e.coords)
    assert done.output.decoded.feats.shape == (512 * num_latents, 1)
    assert len(done.output.decoded.coords) > num_band


def test_matched_values_are_the_decoded_ones_at_the_inputs_voxels(done):
    matched = done.losses.matched
    assert matched.shape == done.target.band.feats.shape
    decoded = by_coords(done.output.decoded)
    some = range(0, len(matched), 97)
    coords = done.target.band.coords.tolist()
    assert [matched[i].item() for i in some] == [decoded[tuple(coords[i])].item() for i in some]


def test_losses_are_finite_and_in_range(done):
    losses = done.losses
    assert 0 < losses.recon < 2 + 4  # |error| < 2 between values in [-1, 1]
    assert 0 < losses.outside < 2 + 4
    assert losses.vq > 0
    assert losses.vq == losses.commitment  # the same value; they differ in what they move
    assert 0 <= losses.sign_errors <= 1
    expected = losses.recon + 0.1 * losses.outside + losses.vq + 0.25 * losses.commitment
    torch.testing.assert_close(losses.total, expected)


def test_decoding_tokens_is_decoding_the_quantized_latents(done):
    decoded = done.vqvae.decode_indices(done.output.quantized.indices, done.output.z_e.grid)
    rows, found = find_rows(done.output.decoded.coords, decoded.grid)
    assert found.all()
    torch.testing.assert_close(decoded.feats[rows], done.output.decoded.feats, rtol=0, atol=1e-6)


def test_tokens_of_a_batch_are_those_of_each_shape(target):
    vqvae = random_vqvae()
    alone = vqvae(target.band, target.plan)
    pair = vqvae(batch_tensors([target.band, target.band]))
    half = len(alone.quantized.indices)
    for own in (slice(half), slice(half, None)):
        assert torch.equal(pair.quantized.indices[own], alone.quantized.indices)
        assert relative_error(pair.z_e.feats[own], alone.z_e.feats) <= 1e-5


# --- backward --------------------------------------------------------------------------------------------------------


def test_every_parameter_has_a_finite_gradient(done):
    for name, parameter in done.vqvae.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if before_a_norm_of_single_channels(name, parameter):
            beside = done.vqvae.get_parameter(name.replace("bias", "weight")).grad
            assert parameter.grad.norm() <= 1e-5 * beside.norm(), name
        else:
            assert parameter.grad.any(), name


def before_a_norm_of_single_channels(name: str, parameter: nn.Parameter) -> bool:
    """A bias whose gradient is 0 but for rounding: the norm after it, in DownBlock, takes it away again."""
    in_down_block = name.startswith("vae.encoder.downsample.") and name.endswith(".out_layers.0.bias")
    return in_down_block and MAX_GROUPS % len(parameter) == 0


def test_the_log_variance_is_not_used(done):
    layer = done.vqvae.vae.encoder.out_layer
    assert layer.weight.grad[:DIM].any()
    assert not layer.weight.grad[DIM:].any()
    assert not layer.bias.grad[DIM:].any()


def gradients_of(target: SDFTarget, term: str) -> dict[str, bool]:
    """Which part of the network a single term of the loss reaches."""
    vqvae = random_vqvae()
    losses = vqvae_loss(
        vqvae(target.band, target.plan), target, recon="l1", lambda_outside=0.1, lambda_vq=1.0, lambda_commitment=0.25
    )
    getattr(losses, term).backward()
    parts = {"encoder": vqvae.vae.encoder, "decoder": vqvae.vae.decoder, "codes": vqvae.quantizer}
    return {name: any(p.grad is not None and p.grad.any() for p in part.parameters()) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("recon", {"encoder", "decoder"}),  # straight through past the codes
        ("outside", {"encoder", "decoder"}),
        ("vq", {"codes"}),
        ("commitment", {"encoder"}),
    ],
)
def test_what_each_term_moves(target, term, reached):
    assert {name for name, has in gradients_of(target, term).items() if has} == reached


def test_the_encoder_gets_the_gradient_at_z_q_unchanged(target):
    vqvae = random_vqvae()
    z_e = vqvae.encode(target.band)
    quantized = vqvae.quantizer(z_e.feats)
    decoded = vqvae.vae.decode(z_e.with_feats(quantized.z_q)).feats.square().sum()
    at_z_q, at_z_e = torch.autograd.grad(decoded, [quantized.z_q, z_e.feats])
    assert torch.equal(at_z_e, at_z_q)
    assert at_z_e.any()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_codebook_and_latents_must_have_as_many_channels():
    with pytest.raises(InputError, match=r"latents have 8 channels but the codes have 16; .*run dvc repro stage1"):
        VQVAE(SparseSDFVAE(CONFIG), ResidualQuantizer([4], 16))


def test_latents_of_an_encoder_without_weights_are_refused(target):
    z_e = SparseSDFVAE(CONFIG).encode(target.band).mean
    with pytest.raises(InputError, match=r"every latent is exactly 0.*point import_vae\.checkpoint at trained"):
        refuse_zero_latents(z_e.feats)


def test_latents_of_a_trained_encoder_are_not(done):
    refuse_zero_latents(done.output.z_e.feats)
