import pytest
import torch

from model.sparse import Grid, SparseTensor, batch_tensors, find_rows
from model.vae import SparseSDFVAE, VAEConfig
from model.vae.network import NUM_LEVELS
from model.vae.receptive_field import plan_decode
from tests.shapes import as_target, random_coords, ring_and_box, voxelized

CONFIG = VAEConfig(model_channels=64, num_blocks=1, latent_channels=16)


def random_scene() -> tuple[Grid, torch.Tensor]:
    """Latent voxels of three shapes, one of them a single voxel, and scattered voxels in them."""
    wanted = torch.cat(
        [random_coords(num_shapes=2, extent=40, seed=3, share=0.01), torch.tensor([[2, 9, 9, 9]], dtype=torch.int32)]
    )
    return Grid(wanted).pooled(NUM_LEVELS), wanted


def real_scene() -> tuple[Grid, torch.Tensor]:
    """The band of two shapes."""
    shapes = [as_target(voxelized(mesh)).band for mesh in (ring_and_box(), ring_and_box().apply_scale([1, 0.5, 0.3]))]
    band = batch_tensors(shapes)
    return band.grid.pooled(NUM_LEVELS), band.coords


@pytest.mark.parametrize("scene", [random_scene, real_scene])
def test_a_part_has_the_values_and_gradients_of_the_whole(scene):
    latents, wanted = scene()
    torch.manual_seed(0)
    vae = SparseSDFVAE(CONFIG)
    feats = torch.randn(len(latents), CONFIG.latent_channels, requires_grad=True)
    z = SparseTensor.on(latents, feats)
    leaves = [feats, *vae.decoder.parameters()]
    upstream = torch.randn(len(wanted), 1)

    whole = vae.decode(z)
    rows, found = find_rows(wanted, whole.grid)
    assert found.all()
    expected = whole.feats[rows]
    expected_gradients = torch.autograd.grad(expected, leaves, upstream)

    part = vae.decode(z, plan_decode(latents, wanted, num_levels=NUM_LEVELS))
    assert torch.equal(part.coords, wanted)
    torch.testing.assert_close(part.feats, expected, rtol=1e-5, atol=1e-6)
    for got, gradient in zip(torch.autograd.grad(part.feats, leaves, upstream), expected_gradients, strict=True):
        assert (got - gradient).norm() <= 1e-5 * gradient.norm()


def test_a_part_costs_less_than_the_whole():
    latents, wanted = real_scene()
    plan = plan_decode(latents, wanted, num_levels=NUM_LEVELS)
    computed = sum(len(step.fine) for step in plan.subdivisions)
    assert computed < 0.5 * (8 + 64 + 512) * len(latents)


def test_what_is_computed_is_what_the_wanted_voxels_read():
    """At the finest level the wanted voxels alone; above it the parents, that exist, of them and of the ring around."""
    latents, wanted = random_scene()
    *_, before, last = plan_decode(latents, wanted, num_levels=NUM_LEVELS).subdivisions
    assert torch.equal(last.fine.coords, wanted)
    offsets = torch.cartesian_prod(torch.zeros(1), *[torch.arange(-1.0, 2)] * 3).int()
    ring = (wanted[:, None] + offsets).view(-1, 4)
    _, stored = find_rows(ring // torch.tensor([1, 8, 8, 8]), latents)
    inside = (ring >= 0).all(1) & stored
    read = (ring[inside] // torch.tensor([1, 2, 2, 2])).unique(dim=0)
    parents = before.fine.coords[: last.children.shape[1]]
    assert {tuple(c) for c in parents.tolist()} == {tuple(c) for c in read.tolist()}


def test_everything_wanted_is_the_whole():
    latents, _ = random_scene()
    plan = plan_decode(latents, latents.subdivided(NUM_LEVELS).coords, num_levels=NUM_LEVELS)
    assert [len(step.fine) for step in plan.subdivisions] == [8 * len(latents), 64 * len(latents), 512 * len(latents)]


def test_a_wanted_voxel_outside_the_latent_voxels_is_an_error_that_names_it():
    latents, wanted = random_scene()
    far = torch.tensor([[0, 300, 1, 2]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"voxel \[0, 300, 1, 2\] lies in no latent voxel"):
        plan_decode(latents, torch.cat([wanted, far]), num_levels=NUM_LEVELS)
