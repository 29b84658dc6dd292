"""The two searches for neighbours against a dictionary, and a convolution where there is no spconv."""

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from model.sparse import neighbours
from model.sparse.neighbours import find_by_keys, find_neighbours
from model.vae import SparseSDFVAE, VAEConfig
from tests.shapes import one_thread, random_coords, random_tensor

CASES = {
    "sparse": random_coords(num_shapes=3, extent=12, seed=0),
    "full": random_coords(num_shapes=2, extent=7, seed=1, share=1.0),
    "one voxel": torch.tensor([[0, 0, 0, 0]], dtype=torch.int32),
    # at both ends of every axis, and the last of a shape beside the first of the next: nobody's neighbours
    "corners": torch.tensor(list(product((0, 1), (0, 3), (0, 3), (0, 3))), dtype=torch.int32),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("by_keys", [True, False], ids=["by keys", "by what there is"])
def test_neighbours_are_found_at_each_offset_of_the_kernel(case, by_keys):
    coords = CASES[case]
    num_shapes, extent = int(coords[:, 0].max()) + 1, int(coords[:, 1:].max()) + 1
    row_of = {tuple(coord): row for row, coord in enumerate(coords.tolist())}
    offsets = list(product((-1, 0, 1), repeat=3))
    expected = [[row_of.get((b, x + i, y + j, z + k), -1) for b, x, y, z in coords.tolist()] for i, j, k in offsets]
    table = (
        find_by_keys(coords, extent=extent)
        if by_keys
        else find_neighbours(coords, num_shapes=num_shapes, extent=extent)
    )
    assert table.dtype == torch.int32
    assert table.tolist() == expected


def decoded_and_gradients() -> list[torch.Tensor | None]:
    """Of a small network, encoder and decoder, with one thread: the last bits of sums depend on their number."""
    with one_thread():
        torch.manual_seed(0)
        vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=8))
        torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
        decoded = vae.decode(vae.encode(random_tensor(1, extent=20)).mean).feats
        gradients = torch.autograd.grad(decoded.square().sum(), list(vae.parameters()), allow_unused=True)
    return [decoded.detach(), *gradients]


def test_where_there_is_no_spconv_the_network_gives_the_same(tmp_path: Path):
    """In a process of its own: what is imported is decided once."""
    if neighbours.spconv_ops is None:
        pytest.skip("spconv is not installed")
    program = """
import sys
sys.modules["spconv"] = None  # importing it now raises ImportError
import torch
from tests.model.sparse.test_neighbours import decoded_and_gradients, neighbours
assert neighbours.spconv_ops is None
torch.save(decoded_and_gradients(), sys.argv[1])
"""
    file = tmp_path / "without.pt"
    subprocess.run([sys.executable, "-c", program, str(file)], check=True)
    for got, expected in zip(torch.load(file), decoded_and_gradients(), strict=True):
        assert (got is None and expected is None) or torch.equal(got, expected)
