"""Layers against loops in NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.sparse import Grid, SparseTensor
from model.vae import HEAD_CHANNELS
from model.vae.layers import (
    WINDOW_SIZE,
    FeedForward,
    TransformerBlock,
    WindowAttention,
    _ActivatedLinear,
    layer_norm,
    position_embedding,
)
from tests.model import numpy_reference
from tests.shapes import random_coords, random_tensor


def float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


# --- layer norm ------------------------------------------------------------------------------------------------------


def test_layer_norm_is_torchs_without_parameters():
    x = random_tensor(64)
    expected = torch.nn.LayerNorm(64, eps=1e-6, elementwise_affine=False)(x.feats)
    torch.testing.assert_close(layer_norm(x, eps=1e-6).feats, expected)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 4])
def test_attention_is_among_the_voxels_of_a_window(shift):
    x = random_tensor(2 * HEAD_CHANNELS, num_shapes=2, extent=13, share=0.1)
    attention = WindowAttention(2 * HEAD_CHANNELS, shift=shift)
    attended = numpy_reference.window_attention(
        x.coords.tolist(),
        float64(attention.to_qkv(x.feats)),
        head_channels=HEAD_CHANNELS,
        window_size=WINDOW_SIZE,
        shift=shift,
    )
    expected = attended @ float64(attention.to_out.weight).T + float64(attention.to_out.bias)
    np.testing.assert_allclose(float64(attention(x)), expected, atol=1e-5)


def test_attention_reaches_its_window_and_no_further():
    x = random_tensor(HEAD_CHANNELS, num_shapes=2, extent=13, share=0.1)
    feats = x.feats.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(WindowAttention(HEAD_CHANNELS, shift=4)(x.with_feats(feats))[7].sum(), feats)
    windows = [numpy_reference.window_of(tuple(c), size=WINDOW_SIZE, shift=4) for c in x.coords.tolist()]
    assert gradient.any(1).tolist() == [window == windows[7] for window in windows]


def test_a_voxel_alone_in_its_window_attends_to_itself():
    attention = WindowAttention(HEAD_CHANNELS, shift=0)
    x = SparseTensor(torch.tensor([[0, 0, 0, 0], [0, 9, 0, 0]], dtype=torch.int32), torch.randn(2, HEAD_CHANNELS))
    value = attention.to_qkv(x.feats)[:, 2 * HEAD_CHANNELS :]
    torch.testing.assert_close(attention(x), attention.to_out(value))


def test_channels_that_are_no_whole_heads_are_refused():
    with pytest.raises(ValueError, match="96 channels do not divide into heads of 64"):
        WindowAttention(96, shift=0)


def test_block_adds_attention_then_mlp():
    x = random_tensor(HEAD_CHANNELS, num_shapes=1)
    block = TransformerBlock(HEAD_CHANNELS, shift=4)
    h = x.feats + block.attn(x.with_feats(F.layer_norm(x.feats, (HEAD_CHANNELS,), eps=1e-6)))
    expected = h + block.mlp(F.layer_norm(h, (HEAD_CHANNELS,), eps=1e-6))
    torch.testing.assert_close(block(x).feats, expected)


def test_mlp_is_four_times_as_wide_with_the_tanh_form_of_gelu():
    mlp = FeedForward(8)
    assert [tuple(p.shape) for p in mlp.parameters()] == [(32, 8), (32,), (8, 32), (8,)]
    x = torch.randn(5, 8)
    h = x @ mlp.mlp["0"].weight.T + mlp.mlp["0"].bias
    gelu = 0.5 * h * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)))  # Hendrycks and Gimpel 2016
    torch.testing.assert_close(mlp(x), gelu @ mlp.mlp["2"].weight.T + mlp.mlp["2"].bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("activation", "plain"), [("silu", F.silu), ("gelu", partial(F.gelu, approximate="tanh"))])
def test_activated_linear_is_the_two_one_after_the_other_and_keeps_what_is_activated(activation, plain):
    feats, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((500, 8), (3, 8), (3,)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = _ActivatedLinear.apply(feats, weight, bias, activation)
    assert [tensor.data_ptr() for tensor in kept] == [feats.data_ptr(), weight.data_ptr()]
    expected = F.linear(plain(feats), weight, bias)
    upstream = torch.randn(output.shape)
    torch.testing.assert_close(output, expected)
    ours = torch.autograd.grad(output, [feats, weight, bias], upstream)
    for got, truth in zip(ours, torch.autograd.grad(expected, [feats, weight, bias], upstream), strict=True):
        torch.testing.assert_close(got, truth, rtol=1e-4, atol=1e-5)


# --- position embedding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [6, 64, 128])
def test_position_embedding_is_sin_then_cos_axis_by_axis(channels):
    coords = random_coords(num_shapes=2, extent=20, seed=0, share=0.01)
    expected = numpy_reference.position_embedding(coords.tolist(), channels)
    np.testing.assert_allclose(position_embedding(coords, channels).numpy(), expected, atol=1e-5)


def test_position_embedding_is_padded_with_zeros_and_ignores_the_batch():
    coords = torch.tensor([[0, 1, 2, 3], [5, 1, 2, 3]], dtype=torch.int32)
    embedding = position_embedding(coords, 64)  # 10 frequencies: 60 channels of 64
    assert not embedding[:, 60:].any()
    assert torch.equal(embedding[0], embedding[1])


# --- the order of rows -----------------------------------------------------------------------------------------------


def test_the_order_of_rows_means_nothing():
    x, layer = random_tensor(64), TransformerBlock(64, shift=4)
    order = torch.randperm(len(x.coords))
    shuffled = SparseTensor.on(Grid(x.coords[order]), x.feats[order])
    torch.testing.assert_close(layer(shuffled).feats, layer(x).feats[order], rtol=1e-4, atol=1e-5)
