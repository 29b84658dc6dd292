import numpy as np
import pytest
import torch

from model.receptive_field import plan_decode, subdivide, subdivide_all
from model.sparse import Grid, SparseTensor, batch_tensors, find_rows, pool_mean
from model.vae import NUM_LEVELS, SparseSDFVAE, VAEConfig
from tests.shapes import as_target, by_coords, random_coords, random_tensor, ring_and_box, voxelized

CONFIG = VAEConfig(model_channels=64, num_blocks=1, latent_channels=16)


# --- subdivision -----------------------------------------------------------------------------------------------------


def to_children(x: SparseTensor) -> SparseTensor:
    return subdivide(x, subdivide_all(x.grid))


def test_every_voxel_becomes_its_eight_children_with_its_features():
    x = random_tensor(3)
    children = by_coords(to_children(x))
    assert len(children) == 8 * len(x.coords)
    parents = by_coords(x)
    for (batch, *position), feats in children.items():
        np.testing.assert_array_equal(feats, parents[(batch, *(p // 2 for p in position))])


def test_subdividing_and_pooling_gives_the_grid_back_and_eight_ninths_of_the_features():
    x = random_tensor(2)
    there_and_back = by_coords(pool_mean(to_children(x)))
    before = by_coords(x)
    assert there_and_back.keys() == before.keys()
    for coord, feats in there_and_back.items():
        np.testing.assert_allclose(feats, before[coord] * 8 / 9, rtol=1e-6)


def test_pooling_and_subdividing_covers_the_grid_it_came_from():
    x = random_tensor(1)
    covered = {tuple(coord) for coord in to_children(pool_mean(x)).coords.tolist()}
    present = {tuple(coord) for coord in x.coords.tolist()}
    cells = {(b, i // 2, j // 2, k // 2) for b, i, j, k in present}
    assert present < covered
    assert len(covered) == 8 * len(cells)


def test_gradient_of_subdivision_sums_over_the_children():
    x = random_tensor(2)
    x.feats.requires_grad_()
    upstream = torch.randn(8 * len(x.feats), 2, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(to_children(x).feats, x.feats, upstream)
    torch.testing.assert_close(gradient, upstream.view(-1, 8, 2).sum(1))


# --- the decode of a part --------------------------------------------------------------------------------------------


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
    assert len(plan.subdivisions[-1].children) < 0.7 * 512 * len(latents)


def test_what_is_computed_is_the_wanted_voxels_and_one_ring():
    """The finest convolution reads the neighbours, that lie in a latent voxel, of what is wanted, and nothing else."""
    latents, wanted = random_scene()
    children = plan_decode(latents, wanted, num_levels=NUM_LEVELS).subdivisions[-1].children
    offsets = torch.cartesian_prod(torch.zeros(1), *[torch.arange(-1.0, 2)] * 3).int()
    ring = (wanted[:, None] + offsets).view(-1, 4).unique(dim=0)
    _, stored = find_rows(ring // torch.tensor([1, 8, 8, 8]), latents)
    inside = (ring >= 0).all(1) & stored
    assert {tuple(c) for c in children.coords.tolist()} == {tuple(c) for c in ring[inside].tolist()}


def test_everything_wanted_is_the_whole():
    latents, _ = random_scene()
    whole = latents.subdivided.subdivided.subdivided
    plan = plan_decode(latents, whole.coords, num_levels=NUM_LEVELS)
    assert [len(step.children) for step in plan.subdivisions] == [
        8 * len(latents),
        64 * len(latents),
        512 * len(latents),
    ]


def test_a_wanted_voxel_outside_the_latent_voxels_is_an_error_that_names_it():
    latents, wanted = random_scene()
    far = torch.tensor([[0, 300, 1, 2]], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"voxel \[0, 300, 1, 2\] lies in no latent voxel"):
        plan_decode(latents, torch.cat([wanted, far]), num_levels=NUM_LEVELS)
