import copy
from collections import Counter

import numpy as np
import pytest
import torch

from model.bricks import BRICK_SIZE
from model.sparse import Grid, SparseTensor, batch_tensors
from model.vae import SparseSDFVAE, VAEConfig, kl_divergence, sample
from model.vae.layers import Recomputable
from model.vae.network import Posterior
from tests.shapes import as_target, by_coords, random_tensor, relative_error, ring_and_box, rows_in_order, voxelized

CONFIG = VAEConfig(model_channels=64, num_blocks=2, latent_channels=8)


@pytest.fixture(scope="module")
def vae() -> SparseSDFVAE:
    """Random, with a last encoder layer that is not zero."""
    torch.manual_seed(0)
    vae = SparseSDFVAE(CONFIG)
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    return vae.eval()


@pytest.fixture(scope="module")
def shape() -> SparseTensor:
    return as_target(voxelized(ring_and_box())).band


def single_latent() -> SparseTensor:
    """Voxels of one brick only."""
    coords = torch.tensor([[0, 8, 9, 10], [0, 8, 9, 11], [0, 15, 15, 15]], dtype=torch.int32)
    return SparseTensor(coords, torch.tensor([[0.3], [-0.2], [0.9]]))


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_latents_live_on_the_occupied_bricks(vae, shape):
    posterior = vae.encode(shape)
    bricks = torch.cat([shape.coords[:, :1], shape.coords[:, 1:] // BRICK_SIZE], 1).unique(dim=0)
    assert torch.equal(posterior.mean.coords[posterior.mean.grid.keys.argsort()], bricks)
    assert posterior.mean.feats.shape == posterior.logvar.feats.shape == (len(bricks), 8)


def test_every_latent_is_decoded_to_its_512_voxels(vae, shape):
    z = vae.encode(shape).mean
    decoded = vae.decode(z)
    assert decoded.feats.shape == (512 * len(z.coords), 1)
    parents = torch.cat([decoded.coords[:, :1], decoded.coords[:, 1:] // BRICK_SIZE], 1)
    voxels, counts = parents.unique(dim=0, return_counts=True)
    assert torch.equal(voxels, z.coords[z.grid.keys.argsort()])
    assert set(counts.tolist()) == {512}
    assert len(decoded.grid.keys.unique()) == len(decoded.coords)


@pytest.mark.parametrize("max_latents", [1, 40, 10**6])
def test_decoding_in_parts_is_decoding_the_whole(vae, shape, max_latents):
    """Rows shuffled and two shapes in a batch, so that a part may lie anywhere."""
    batch = batch_tensors([shape, single_latent()])
    z = vae.encode(batch).mean
    order = torch.randperm(len(z.grid), generator=torch.Generator().manual_seed(0))[:120]
    z = SparseTensor(z.coords[order], torch.randn(len(order), z.feats.shape[1]))
    whole, parts = vae.decode(z), vae.decode_in_parts(z, max_latents=max_latents)
    assert torch.equal(parts.coords, whole.coords)
    assert relative_error(parts.feats, whole.feats) < 1e-6
    assert not parts.feats.requires_grad


def test_decoded_values_lie_between_minus_one_and_one(vae, shape):
    z = vae.encode(shape).mean
    assert vae.decode(z.with_feats(z.feats * 1000)).feats.abs().max() <= 1


@pytest.mark.parametrize("model_channels", [64, 128, 192, 320, 512])
def test_any_width_of_whole_heads_works(model_channels):
    vae = SparseSDFVAE(VAEConfig(model_channels, 1, 4))
    c = model_channels
    assert vae.config.level_channels == (c // 16, c // 8, c // 4, c)
    posterior = vae.encode(single_latent())
    assert vae.decode(posterior.mean).feats.shape == (512, 1)


# --- what a network starts from --------------------------------------------------------------------------------------


def test_without_trained_weights_every_latent_is_exactly_zero(shape):
    posterior = SparseSDFVAE(CONFIG).encode(shape)
    assert not posterior.mean.feats.any()
    assert not posterior.logvar.feats.any()


# --- memory ----------------------------------------------------------------------------------------------------------


def gradients(vae: SparseSDFVAE, shape: SparseTensor) -> dict[str, torch.Tensor]:
    vae.zero_grad()
    vae.decode(vae.encode(shape).mean).feats.square().mean().backward()
    return {name: parameter.grad.clone() for name, parameter in vae.named_parameters() if parameter.grad is not None}


def test_recomputing_runs_each_block_again_and_changes_no_gradient(vae, shape):
    expected = gradients(vae, shape)
    recomputing, runs = copy.deepcopy(vae), Counter()
    recomputing.recompute_activations()
    for name, module in recomputing.named_modules():
        if isinstance(module, Recomputable):
            module.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    got = gradients(recomputing, shape)
    assert len(runs) == 3 + 2 + 2 + 3
    assert set(runs.values()) == {2}
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    with torch.no_grad():
        recomputing.encode(shape)
    assert max(runs.values()) == 3


# --- batches ---------------------------------------------------------------------------------------------------------


def test_shapes_of_a_batch_are_encoded_as_each_alone(vae, shape):
    alone = [shape, single_latent(), random_tensor(1, num_shapes=1, extent=20, share=0.05)]
    batch = vae.encode(batch_tensors(alone))
    for index, x in enumerate(alone):
        expected = vae.encode(x)
        own = batch.mean.coords[:, 0] == index
        for together, apart in zip(batch, expected, strict=True):
            assert torch.equal(together.coords[own, 1:], apart.coords[:, 1:])
            assert relative_error(together.feats[own], apart.feats) <= 1e-5


def test_shapes_of_a_batch_are_decoded_as_each_alone(vae, shape):
    alone = [vae.encode(x).mean for x in (shape, single_latent())]
    batch = vae.decode(batch_tensors(alone))
    for index, z in enumerate(alone):
        own = batch.coords[:, 0] == index
        expected = vae.decode(z)
        assert torch.equal(batch.coords[own, 1:], expected.coords[:, 1:])
        assert relative_error(batch.feats[own], expected.feats) <= 1e-5


def test_the_order_of_voxels_means_nothing(vae, shape):
    order = torch.randperm(len(shape.coords), generator=torch.Generator().manual_seed(0))
    shuffled = SparseTensor.on(Grid(shape.coords[order]), shape.feats[order])
    z, z_shuffled = vae.encode(shape).mean, vae.encode(shuffled).mean
    assert relative_error(rows_in_order(z_shuffled), rows_in_order(z)) <= 1e-4  # sums in another order
    decoded = by_coords(vae.decode(z))
    decoded_shuffled = by_coords(vae.decode(z_shuffled))
    assert decoded.keys() == decoded_shuffled.keys()
    np.testing.assert_allclose(
        [decoded[coord] for coord in decoded], [decoded_shuffled[coord] for coord in decoded], atol=1e-5
    )


def test_a_latent_far_away_in_another_window_does_not_reach_a_voxel(vae):
    """One block attends within windows of 8; after it, convolutions reach less than three latent voxels."""
    torch.manual_seed(0)
    decoder = SparseSDFVAE(VAEConfig(64, 1, 8)).decoder
    coords = torch.tensor([[0, x, 0, 0] for x in range(16)], dtype=torch.int32)
    feats = torch.randn(16, 8, requires_grad=True)
    decoded = decoder(SparseTensor(coords, feats))
    far = decoded.feats[decoded.coords[:, 1] >= 8 * 11].sum()  # three latents into the second window
    (gradient,) = torch.autograd.grad(far, feats)
    assert gradient[8:].any(1).all()
    assert not gradient[:8].any()


# --- the posterior ---------------------------------------------------------------------------------------------------


def posterior(mean: torch.Tensor, logvar: torch.Tensor) -> Posterior:
    coords = torch.zeros(len(mean), 4, dtype=torch.int32)
    coords[:, 1] = torch.arange(len(mean))
    grid = Grid(coords)
    return Posterior(SparseTensor.on(grid, mean), SparseTensor.on(grid, logvar))


def test_kl_is_that_of_two_gaussians():
    torch.manual_seed(0)
    mean, logvar = torch.randn(7, 3), torch.randn(7, 3)
    normal = torch.distributions.Normal(mean, (logvar / 2).exp())
    standard = torch.distributions.Normal(torch.zeros(7, 3), torch.ones(7, 3))
    expected = torch.distributions.kl_divergence(normal, standard).sum(1).mean()
    torch.testing.assert_close(kl_divergence(posterior(mean, logvar)), expected)


def test_kl_of_the_standard_normal_is_zero():
    assert kl_divergence(posterior(torch.zeros(4, 2), torch.zeros(4, 2))) == 0


def test_samples_have_the_posteriors_mean_and_deviation():
    wide = posterior(torch.full((40_000, 1), 3.0), torch.full((40_000, 1), -2.0))
    drawn = sample(wide, torch.Generator().manual_seed(0))
    assert drawn.feats.mean() == pytest.approx(3.0, abs=0.01)
    assert drawn.feats.std() == pytest.approx(np.exp(-1.0), rel=0.02)


def test_gradients_pass_through_a_sample_to_mean_and_logvar():
    mean, logvar = torch.randn(5, 2, requires_grad=True), torch.randn(5, 2, requires_grad=True)
    drawn = sample(posterior(mean, logvar), torch.Generator().manual_seed(0)).feats
    grad_mean, grad_logvar = torch.autograd.grad(drawn.sum(), [mean, logvar])
    torch.testing.assert_close(grad_mean, torch.ones(5, 2))
    torch.testing.assert_close(grad_logvar, (drawn - mean).detach() / 2)
