"""Group norm, SiLU and pooling against loops in NumPy, torch's dense layers, and the formula in float64."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.sparse import Grid, GroupNormSiLU, SparseTensor
from tests.model import numpy_reference
from tests.shapes import by_coords, random_tensor


@pytest.mark.parametrize(("channels", "num_groups"), [(4, 4), (32, 32), (48, 16), (64, 32), (128, 32)])
def test_group_norm_takes_its_statistics_per_shape(channels, num_groups):
    x = random_tensor(channels, num_shapes=3)
    x = x.with_feats(x.feats * (1 + x.coords[:, :1]) + 5 * x.coords[:, :1])  # shapes that differ in mean and scale
    norm = GroupNormSiLU(channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = numpy_reference.group_norm(
        x.coords.tolist(),
        x.feats.double().numpy(),
        norm.weight.detach().double().numpy(),
        norm.bias.detach().double().numpy(),
        num_groups=num_groups,
        eps=1e-5,
    )
    expected = expected / (1 + np.exp(-expected))  # SiLU
    np.testing.assert_allclose(norm(x).feats.detach().double().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_shape_without_voxels_changes_nothing_for_the_others():
    x, norm = random_tensor(32, num_shapes=2), GroupNormSiLU(32)
    apart = SparseTensor(x.coords * torch.tensor([2, 1, 1, 1], dtype=torch.int32), x.feats)  # shape 1 is shape 2 now
    outputs, gradients = [], []
    for tensor in (x, apart):
        feats = tensor.feats.clone().requires_grad_()
        outputs.append(norm(tensor.with_feats(feats)).feats)
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [feats, norm.weight, norm.bias]))
    torch.testing.assert_close(outputs[1], outputs[0])
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(got, expected)


def test_for_one_shape_it_is_torchs_with_its_gradients():
    x = random_tensor(64, num_shapes=1)
    norm = GroupNormSiLU(64)
    torch.nn.init.normal_(norm.weight)
    feats = x.feats.clone().requires_grad_()
    upstream = torch.randn(feats.shape)
    ours = torch.autograd.grad(norm(x.with_feats(feats)).feats, [feats, norm.weight, norm.bias], upstream)
    dense = F.silu(F.group_norm(feats.T[None], 32, norm.weight, norm.bias)[0].T)
    for got, expected in zip(ours, torch.autograd.grad(dense, [feats, norm.weight, norm.bias], upstream), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_group_norm_has_the_gradients_of_its_formula():
    x, norm = random_tensor(48, num_shapes=3), GroupNormSiLU(48)
    torch.nn.init.normal_(norm.weight)
    feats = (x.feats * (1 + x.coords[:, :1]) + 5 * x.coords[:, :1]).requires_grad_()
    upstream = torch.randn(feats.shape)
    ours = torch.autograd.grad(norm(x.with_feats(feats)).feats, [feats, norm.weight, norm.bias], upstream)
    exact = [tensor.detach().double().requires_grad_() for tensor in (feats, norm.weight, norm.bias)]
    parts = []
    for shape in range(3):
        grouped = exact[0][x.coords[:, 0] == shape].unflatten(1, (16, 3))
        centred = grouped - grouped.mean((0, 2), keepdim=True)
        variance = centred.square().mean((0, 2), keepdim=True)
        parts.append((centred / (variance + 1e-5).sqrt()).flatten(1) * exact[1] + exact[2])
    order = x.coords[:, 0].argsort(stable=True)
    expected = torch.autograd.grad(F.silu(torch.cat(parts)), exact, upstream[order].double())
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-4)


def test_group_norm_keeps_its_input_and_no_other_large_tensor():
    x, kept = random_tensor(32, num_shapes=2), []
    feats = x.feats.half().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = GroupNormSiLU(32)(x.with_feats(feats)).feats
    assert output.dtype == torch.float16
    assert [tensor.data_ptr() for tensor in kept if tensor.numel() > 1000] == [feats.data_ptr()]


def test_group_norm_survives_a_large_mean():
    """The variance is that of centred values, not a difference of large squares."""
    x = random_tensor(32, num_shapes=1)
    norm = GroupNormSiLU(32)
    shifted = norm(x.with_feats(x.feats + 1000)).feats
    torch.testing.assert_close(shifted, norm(x).feats, rtol=0, atol=2e-3)


def test_group_norm_of_a_single_voxel_is_its_bias_where_each_channel_is_a_group():
    norm = GroupNormSiLU(4)
    torch.nn.init.normal_(norm.bias)
    x = SparseTensor(torch.zeros(1, 4, dtype=torch.int32), torch.randn(1, 4))
    torch.testing.assert_close(norm(x).feats[0], F.silu(norm.bias))


def test_pooled_it_is_the_mean_of_what_it_gives_and_of_what_it_got():
    x, norm = random_tensor(32), GroupNormSiLU(32)
    activated, plain = norm.forward_pooled(x)
    assert activated.grid is plain.grid is x.grid.pooling.coarse
    for got, unpooled in ((activated, norm(x)), (plain, x)):
        expected = numpy_reference.pool_mean(x.coords.tolist(), unpooled.feats.detach().double().numpy())
        assert by_coords(got).keys() == expected.keys()
        for coord, feats in by_coords(got).items():
            np.testing.assert_allclose(feats, expected[coord], rtol=1e-5, atol=1e-6)


def test_the_order_of_rows_means_nothing():
    x, norm = random_tensor(64), GroupNormSiLU(64)
    order = torch.randperm(len(x.coords))
    shuffled = SparseTensor.on(Grid(x.coords[order]), x.feats[order])
    torch.testing.assert_close(norm(shuffled).feats, norm(x).feats[order], rtol=1e-4, atol=1e-5)
