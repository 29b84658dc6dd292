"""Kernels for CUDA against the CPU's results in float64, where there is a GPU."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.quantizer.quantizer import nearest_codes
from model.sparse import ChildConv3d, Grid, GroupNormSiLU, SparseTensor, Subdivision, SubMConv3d
from model.sparse.conv import convolve, convolve_input_gradient, convolve_kernel_gradient
from model.sparse.neighbours import NUM_OFFSETS, find_by_keys, find_neighbours
from model.vae import HEAD_CHANNELS, SparseSDFVAE, VAEConfig
from model.vae.layers import WindowAttention
from model.vae.network import NUM_LEVELS, make_ahead
from model.vae.receptive_field import plan_decode
from tests.shapes import random_coords, random_tensor, relative_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)
WIDTHS = [(32, 32), (12, 24), (48, 192), (64, 128)]  # the small presets' widths are no powers of two
MANY = 2**31  # what 32 bits count
needs_40_gb = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 40e9, reason="the GPU is too small"
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def check(layer: nn.Module, feats: Tensor, run: Callable[[nn.Module, Tensor, str], Tensor], dtype: torch.dtype) -> None:
    """Values and gradients of all parameters and of the input. `run` is given layer, features and device."""
    feats = feats.to(dtype)  # what both read
    exact_layer, exact_feats = copy.deepcopy(layer).double(), feats.double().requires_grad_()
    expected = run(exact_layer, exact_feats, "cpu")
    upstream = torch.randn(expected.shape).to(dtype)
    gradients = torch.autograd.grad(expected, [exact_feats, *exact_layer.parameters()], upstream.double())

    layer, feats = layer.cuda(), feats.cuda().requires_grad_()
    got = run(layer, feats, "cuda")
    assert got.dtype == dtype
    ours = torch.autograd.grad(got, [feats, *layer.parameters()], upstream.cuda())
    for ours_, truth in zip([got, *ours], [expected, *gradients], strict=True):
        assert relative_error(ours_.cpu(), truth) <= TOLERANCE[dtype]


def test_neighbours():
    coords = random_coords(num_shapes=3, extent=14, seed=0)
    expected = find_by_keys(coords, extent=14)
    assert torch.equal(find_by_keys(coords.cuda(), extent=14).cpu(), expected)
    assert torch.equal(find_neighbours(coords.cuda(), num_shapes=3, extent=14).cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
def test_convolution(in_channels, out_channels, dtype):
    x = random_tensor(in_channels, num_shapes=2, extent=14)
    layer = SubMConv3d(in_channels, out_channels)
    nn.init.normal_(layer.bias)

    def run(layer: nn.Module, feats: Tensor, device: str) -> Tensor:
        with torch.autocast(device, torch.float16, enabled=dtype == torch.float16 and device == "cuda"):
            return layer(SparseTensor.on(x.grid.to(device), feats), len(feats) // 2).feats

    check(layer, x.feats, run, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_channels", "out_channels"), WIDTHS)
def test_convolution_on_children(in_channels, out_channels, dtype):
    grid = Grid(random_coords(num_shapes=2, extent=10, seed=0))
    wanted = torch.rand(8, len(grid)) < 0.5
    children = torch.full((8, len(grid)), -1, dtype=torch.int32)
    children[wanted] = torch.randperm(int(wanted.sum())).int()
    coords = grid.subdivision.fine.coords[: int(wanted.sum())]  # only their number counts
    layer = ChildConv3d(in_channels, out_channels)
    nn.init.normal_(layer.bias)

    def run(layer: nn.Module, feats: Tensor, device: str) -> Tensor:
        fine = Grid(coords.to(device), num_shapes=2, extent=20)
        with torch.autocast(device, torch.float16, enabled=dtype == torch.float16 and device == "cuda"):
            return layer(SparseTensor.on(grid.to(device), feats), Subdivision(fine, children.to(device))).feats

    check(layer, torch.randn(len(grid), in_channels), run, dtype)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [32, 12, 192, 512])
def test_norm(channels, dtype, pooled):
    x = random_tensor(channels, num_shapes=3, extent=14)
    feats = x.feats * (1 + x.coords[:, :1]) + 5 * x.coords[:, :1]  # shapes that differ in mean and scale
    norm = GroupNormSiLU(channels)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)

    def run(norm: nn.Module, feats: Tensor, device: str) -> Tensor:
        here = SparseTensor.on(x.grid.to(device), feats)
        return torch.cat([part.feats for part in norm.forward_pooled(here)], 1) if pooled else norm(here).feats

    check(norm, feats, run, dtype)


def test_norm_survives_a_large_mean_and_a_shape_without_voxels():
    coords = random_coords(num_shapes=2, extent=14, seed=0) * torch.tensor([2, 1, 1, 1], dtype=torch.int32)
    norm, feats = GroupNormSiLU(32), torch.randn(len(coords), 32) + 1000
    expected = copy.deepcopy(norm).double()(SparseTensor(coords, feats.double())).feats
    got = norm.cuda()(SparseTensor(coords.cuda(), feats.cuda())).feats
    torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("part", [False, True], ids=["whole", "planned"])
def test_network_with_all_its_gradients(part):
    """In float32: the whole way from the input to what the decoder gives, of all voxels or of some."""
    x = random_tensor(1, num_shapes=2, extent=30, share=0.2)
    latents = x.grid.pooled(NUM_LEVELS)
    wanted = x.coords[::3].contiguous()
    vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=2, latent_channels=16))
    nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)

    def run(vae: nn.Module, feats: Tensor, device: str) -> Tensor:
        grid = x.grid.to(device)
        plan = plan_decode(grid.pooled(NUM_LEVELS), wanted.to(device), num_levels=NUM_LEVELS) if part else None
        if plan:
            make_ahead(grid, plan)
        return vae.decode(vae.encode(SparseTensor.on(grid, feats)).mean, plan).feats

    expected, ours = [], []
    for device, results in (("cpu", expected), ("cuda", ours)):
        copied = copy.deepcopy(vae).to(device)
        feats = x.feats.to(device).requires_grad_()
        output = run(copied, feats, device)
        results += [
            output,
            *torch.autograd.grad(output.square().sum(), [feats, *copied.parameters()], allow_unused=True),
        ]
    assert len(latents) < len(wanted)
    for got, truth in zip(ours, expected, strict=True):
        assert (got is None) == (truth is None)
        if truth is not None:  # some are 0 but for rounding: a bias before a norm of one channel
            assert (got.cpu() - truth).norm() <= 1e-3 * truth.norm() + 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 4])
def test_attention(shift, dtype):
    """In float16 the varlen kernel, in float32 padded windows."""
    x = random_tensor(2 * HEAD_CHANNELS, num_shapes=3, extent=20, share=0.2)

    def run(layer: nn.Module, feats: Tensor, device: str) -> Tensor:
        with torch.autocast(device, torch.float16, enabled=dtype == torch.float16 and device == "cuda"):
            return layer(SparseTensor.on(x.grid.to(device), feats))

    check(WindowAttention(2 * HEAD_CHANNELS, shift=shift), x.feats, run, dtype)


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("dim", [1, 64, 100, 128, 200, 256, 257])  # the kernel is for up to 256
def test_nearest_codes(dim, offset):
    """Every code of the first 300 is there twice: the lower index is the answer."""
    codes, vectors = torch.randn(1000, dim) + offset, torch.randn(2000, dim) + offset
    codes = torch.cat([codes, codes[:300]])
    got = nearest_codes(vectors.cuda(), codes.cuda()).cpu().numpy()
    exact = codes.double().numpy()
    expected = [np.square(exact - vector).sum(1).argmin() for vector in vectors.double().numpy()]
    np.testing.assert_array_equal(got, expected)


@needs_40_gb
def test_tables_and_outputs_of_more_than_2_31_elements():
    """On a full cube. Each output channel takes one kernel element: it is the feature of that neighbour, exactly."""
    side = 432
    axis = torch.arange(side, dtype=torch.int32, device="cuda")
    coords = torch.cartesian_prod(axis[:1], axis, axis, axis)
    table = find_neighbours(coords, num_shapes=1, extent=side)
    del coords
    feats = torch.randint(1, 4, (side**3, 1), device="cuda").half()
    weight = torch.eye(NUM_OFFSETS, device="cuda").half().view(NUM_OFFSETS, 3, 3, 3, 1)
    output = convolve(feats, weight, weight.new_zeros(NUM_OFFSETS), len(feats), table)
    assert min(table.numel(), output.numel()) > MANY
    given_back = convolve_input_gradient(output, weight, len(feats), table)[:, 0]

    rows = torch.arange(side**3, dtype=torch.int32, device="cuda").view(side, side, side)
    rows = nn.functional.pad(rows, (1,) * 6, value=-1)
    readers = torch.zeros_like(feats[:, 0])
    for offset in range(NUM_OFFSETS):
        x, y, z = (slice(start, start + side) for start in (offset // 9, offset // 3 % 3, offset % 3))
        expected = rows[x, y, z].flatten()
        assert torch.equal(table[offset], expected)
        present = expected >= 0
        assert torch.equal(output[:, offset], torch.where(present, feats[expected.clamp(min=0), 0], 0.0))
        readers += present
    assert torch.equal(given_back, feats[:, 0] * readers)

    exact = sum(part.double().T @ part.double() for part in output.split(2**22))
    gradient = convolve_kernel_gradient(feats, output, table)[:, :, 0]
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-5, atol=0)


@needs_40_gb
@pytest.mark.parametrize("kind", ["convolution", "convolution on children", "norm", "norm with pooling"])
def test_features_of_more_than_2_31_elements(kind):
    """Each of many equal shapes gets what one of them gets alone, and the parameters so many times its gradients."""
    channels = 128
    layers = {"convolution": SubMConv3d, "convolution on children": ChildConv3d}
    layer = (layers[kind](channels, channels) if kind in layers else GroupNormSiLU(channels)).cuda()
    one = random_coords(num_shapes=1, extent=64, seed=0).cuda()
    feats = torch.randn(len(one), channels).cuda().half()

    def run(num_shapes: int, upstream: Tensor | None) -> list[Tensor]:
        coords = one.repeat(num_shapes, 1)
        coords[:, 0] = torch.arange(num_shapes, device="cuda").repeat_interleave(len(one))
        grid = Grid(coords, num_shapes=num_shapes, extent=64)
        x = SparseTensor.on(grid, feats.repeat(num_shapes, 1).requires_grad_())
        with torch.autocast("cuda", torch.float16):
            match kind:
                case "norm with pooling":
                    output = layer.forward_pooled(x)[0].feats
                case "convolution on children":
                    output = layer(x, grid.subdivision).feats
                case _:
                    output = layer(x).feats
        upstream = torch.randn_like(output) if upstream is None else upstream.repeat(num_shapes, 1)
        return [output, upstream, *torch.autograd.grad(output, [x.feats, *layer.parameters()], upstream)]

    expected, upstream, *gradients = run(1, None)
    num_shapes = MANY // (channels * max(len(feats), len(expected))) + 2
    output, _, grad_feats, *of_parameters = run(num_shapes, upstream)
    assert max(output.numel(), grad_feats.numel()) > MANY
    for got, alone in ((output, expected), (grad_feats, gradients[0])):
        assert all(relative_error(part, alone) <= TOLERANCE[torch.float16] for part in got.split(len(alone)))
    for got, alone in zip(of_parameters, gradients[1:], strict=True):
        assert relative_error(got, num_shapes * alone) <= TOLERANCE[torch.float16]
