"""The CPU convolution against a dense one in float64."""

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from model.sparse import SparseTensor, SubMConv3d, conv
from tests.shapes import random_coords, random_tensor, relative_error

TOLERANCE = 1e-5  # relative; float32 over 27 * channels products


class Result(NamedTuple):
    output: torch.Tensor
    grad_feats: torch.Tensor
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor


@pytest.fixture(params=[1, os.cpu_count()], ids=["one_thread", "all_threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def case(*, in_channels: int, out_channels: int, extent: int = 12, share: float = 0.3, seed: int = 0):
    torch.manual_seed(seed)
    x = random_tensor(in_channels, num_shapes=3, extent=extent, seed=seed, share=share)
    layer = SubMConv3d(in_channels, out_channels)
    torch.nn.init.normal_(layer.bias)
    return x, layer, torch.randn(len(x.coords), out_channels)


def sparse(x: SparseTensor, layer: SubMConv3d, upstream: torch.Tensor) -> Result:
    feats = x.feats.detach().requires_grad_()
    output = layer(SparseTensor(x.coords, feats)).feats
    return Result(output.detach(), *torch.autograd.grad(output, [feats, layer.weight, layer.bias], upstream))


def dense(x: SparseTensor, layer: SubMConv3d, upstream: torch.Tensor) -> Result:
    """conv3d over the full grid, looked at where there are voxels."""
    batch, i, j, k = x.coords.long().unbind(1)
    feats = x.feats.detach().double().requires_grad_()
    weight = layer.weight.detach().double().requires_grad_()  # [out, x, y, z, in]
    bias = layer.bias.detach().double().requires_grad_()
    shape = (x.grid.num_shapes, *[x.grid.extent] * 3, feats.shape[1])
    volume = feats.new_zeros(shape).index_put((batch, i, j, k), feats)
    convolved = F.conv3d(volume.permute(0, 4, 1, 2, 3), weight.permute(0, 4, 1, 2, 3), bias, padding=1)
    output = convolved.permute(0, 2, 3, 4, 1)[batch, i, j, k]
    return Result(output.detach(), *torch.autograd.grad(output, [feats, weight, bias], upstream.double()))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(
    ("in_channels", "out_channels", "share"), [(1, 4, 0.3), (16, 8, 0.05), (8, 16, 1.0), (32, 32, 0.3)]
)
def test_equals_the_dense_convolution_forward_and_backward(in_channels, out_channels, share):
    arguments = case(in_channels=in_channels, out_channels=out_channels, share=share)
    for got, expected in zip(sparse(*arguments), dense(*arguments), strict=True):
        assert relative_error(got, expected) <= TOLERANCE


@pytest.mark.usefixtures("threads")
def test_is_the_same_to_the_bit_from_run_to_run():
    arguments = case(in_channels=16, out_channels=16, extent=20)
    first = sparse(*arguments)
    for _ in range(5):
        for got, expected in zip(sparse(*arguments), first, strict=True):
            assert torch.equal(got, expected)


def test_blocks_of_rows_change_nothing(monkeypatch):
    """Memory is bounded by blocks of rows, and those are summed in pieces; with small bounds there are many of both."""
    arguments = case(in_channels=8, out_channels=8)
    monkeypatch.setattr(conv, "COLUMN_ELEMENTS", 27 * 8 * 50)
    monkeypatch.setattr(conv, "ROWS_PER_PRODUCT", 16)
    for got, expected in zip(sparse(*arguments), dense(*arguments), strict=True):
        assert relative_error(got, expected) <= TOLERANCE


def test_more_voxels_than_a_block_holds():
    arguments = case(in_channels=64, out_channels=4, extent=22)
    assert len(arguments[0].coords) > conv.COLUMN_ELEMENTS // (27 * 64)
    for got, expected in zip(sparse(*arguments), dense(*arguments), strict=True):
        assert relative_error(got, expected) <= TOLERANCE


def test_the_voxels_of_the_output_are_those_of_the_input():
    x, layer, _ = case(in_channels=2, out_channels=3)
    assert layer(x).grid is x.grid


def test_an_isolated_voxel_meets_only_the_centre_of_the_kernel():
    layer = SubMConv3d(2, 3)
    coords = torch.tensor([[0, 0, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0]], dtype=torch.int32)  # none beside another
    feats = torch.randn(3, 2)
    torch.testing.assert_close(layer(SparseTensor(coords, feats)).feats, feats @ layer.weight[:, 1, 1, 1].T)


def test_a_neighbour_is_weighted_by_where_it_lies():
    """The weight is [out, x, y, z, in], index 1 in the middle: the voxel at +x meets weight[:, 2, 1, 1]."""
    layer = SubMConv3d(1, 1)
    feats = torch.tensor([[0.0], [1.0]])
    for axis in range(3):
        neighbour = [0, 4, 4, 4]
        neighbour[axis + 1] += 1
        coords = torch.tensor([[0, 4, 4, 4], neighbour], dtype=torch.int32)
        offset = [1, 1, 1]
        offset[axis] = 2
        assert layer(SparseTensor(coords, feats)).feats[0, 0] == layer.weight[0, *offset, 0]


def test_shapes_of_a_batch_do_not_meet():
    """Two shapes with neighbouring coordinates: what one holds does not reach the other."""
    x, layer, _ = case(in_channels=2, out_channels=2)
    feats = x.feats.clone().requires_grad_()
    output = layer(SparseTensor(x.coords, feats)).feats
    (gradient,) = torch.autograd.grad(output[x.coords[:, 0] == 1].sum(), feats)
    assert gradient[x.coords[:, 0] == 1].any()
    assert not gradient[x.coords[:, 0] != 1].any()


def test_gradients_agree_with_differences_in_float64():
    coords = random_coords(num_shapes=2, extent=5, seed=1)
    layer = SubMConv3d(2, 3).double()
    feats = torch.randn(len(coords), 2, dtype=torch.float64, requires_grad=True)

    def convolve(feats, weight):
        return functional_call(layer, {"weight": weight}, SparseTensor(coords, feats)).feats

    assert torch.autograd.gradcheck(convolve, (feats, layer.weight), fast_mode=True)


def test_one_search_for_neighbours_serves_every_layer_on_a_grid():
    x = random_tensor(2)
    SubMConv3d(2, 2)(SubMConv3d(2, 2)(x))
    assert conv.neighbour_table(x.grid) is conv.neighbour_table(x.with_feats(x.feats * 2).grid)
