"""The convolution on children against subdividing first, in float64."""

import pytest
import torch

from model.sparse import ChildConv3d, Grid, SparseTensor, Subdivision, SubMConv3d
from tests.shapes import random_tensor, relative_error

TOLERANCE = 1e-5  # relative; kernels of float32 are summed before the products, not after


def some_children(grid: Grid, *, share: float) -> Subdivision:
    """A random share of the children of the grid's leading half."""
    every = grid.subdivision
    num_parents = len(grid) // 2
    chosen = torch.rand(8, num_parents, generator=torch.Generator().manual_seed(0)) < share
    rows = every.children[:, :num_parents][chosen].long()
    children = torch.full((8, num_parents), -1, dtype=torch.int32)
    children[chosen] = torch.arange(len(rows), dtype=torch.int32)
    return Subdivision(Grid(every.fine.coords[rows], num_shapes=grid.num_shapes, extent=every.fine.extent), children)


def as_parents_of(step: Subdivision, x: SparseTensor) -> SparseTensor:
    num_parents = step.children.shape[1]
    return SparseTensor.on(x.grid.leading(num_parents), x.feats[:num_parents])


@pytest.mark.parametrize("share", [None, 0.9, 0.1], ids=["all", "most", "few"])
@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 8), (16, 16)])
def test_equals_convolving_the_children_forward_and_backward(share, in_channels, out_channels):
    torch.manual_seed(0)
    x = random_tensor(in_channels, num_shapes=2, extent=8, share=0.4)
    step = x.grid.subdivision if share is None else some_children(x.grid, share=share)
    parents = as_parents_of(step, x)
    feats = parents.feats.requires_grad_()
    layer = ChildConv3d(in_channels, out_channels)
    torch.nn.init.normal_(layer.bias)
    upstream = torch.randn(len(step.fine), out_channels)
    output = layer(parents, step)
    assert output.grid is step.fine
    got = [output.feats, *torch.autograd.grad(output.feats, [feats, layer.weight, layer.bias], upstream)]

    plain = SubMConv3d(in_channels, out_channels).double()
    plain.load_state_dict({key: value.double() for key, value in layer.state_dict().items()})
    exact = feats.detach().double().requires_grad_()
    whole = Grid(parents.coords, num_shapes=x.grid.num_shapes, extent=x.grid.extent).subdivision
    on_all = plain(SparseTensor.on(whole.fine, exact.repeat_interleave(8, 0))).feats
    rows = torch.empty(len(step.fine), dtype=torch.int64)
    present = step.children >= 0
    rows[step.children[present].long()] = whole.children[present].long()
    expected = on_all[rows]
    gradients = torch.autograd.grad(expected, [exact, plain.weight, plain.bias], upstream.double())
    for ours, truth in zip(got, [expected, *gradients], strict=True):
        assert relative_error(ours, truth) <= TOLERANCE


def test_is_the_same_to_the_bit_from_run_to_run():
    x = random_tensor(8, extent=12)
    feats = x.feats.requires_grad_()
    layer = ChildConv3d(8, 8)

    def results() -> list[torch.Tensor]:
        output = layer(x, x.grid.subdivision).feats
        return [output, *torch.autograd.grad(output.square().sum(), [feats, layer.weight])]

    for first, again in zip(results(), results(), strict=True):
        assert torch.equal(first, again)


def test_no_neighbours_are_searched_among_the_children():
    x = random_tensor(4)
    ChildConv3d(4, 4)(x, x.grid.subdivision)
    assert x.grid.subdivision.fine.neighbours is None
