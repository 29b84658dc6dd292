"""What the pictures of a codebook show, as numbers."""

import numpy as np
import pytest
import torch

from model.plots import draw_codebook
from model.plots.codebook import measure_spectrum, neighbour_distances, principal_directions


def test_distances_to_the_nearest_other_code():
    """Also beyond the 512 codes of a block, where a code must not find itself; duplicates are at 0."""
    line = torch.stack([2.0 * torch.arange(600), torch.zeros(600)], 1)
    line[-1] = line[-2] + torch.tensor([0.0, 0.5])
    expected = torch.full((600,), 2.0)
    expected[-2:] = 0.5
    assert torch.equal(neighbour_distances(line), expected)
    assert neighbour_distances(torch.ones(3, 2)).tolist() == [0, 0, 0]


def test_the_spectrum_shows_where_the_error_is():
    """Variances 16 and 1 along turned axes; codes that know the first axis alone lose all of the second."""
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=generator))[0]
    flat = torch.randn(20_000, 2, generator=generator) * torch.tensor([4.0, 1.0])
    codes = torch.stack([torch.linspace(-12, 12, 64), torch.zeros(64)], 1)
    indices = (flat[:, :1] - codes[:, 0]).abs().argmin(1)
    vectors, turned = flat @ turn, codes @ turn
    spectrum = measure_spectrum(vectors, indices, turned, principal_directions(vectors))
    assert spectrum.variance == pytest.approx([16 / 17, 1 / 17], rel=0.03)
    assert spectrum.measured_error[1] == pytest.approx(spectrum.variance[1], rel=0.01)
    assert spectrum.measured_error[0] < 0.01
    level = 4 / 64 / 17  # 6 bits: (1/2) log2(16 / level) + (1/2) log2(1 / level)
    assert spectrum.bound == pytest.approx([level, level], rel=0.03)


@pytest.mark.parametrize(("dim", "size"), [(1, 5), (2, 5), (3, 5), (8, 5), (8, 1)])
def test_any_dimension_can_be_drawn(dim: int, size: int):
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(50, dim, generator=generator), torch.randn(size, dim, generator=generator)
    indices = (vectors[:, None] - codes).square().sum(2).argmin(1)
    files = draw_codebook(vectors, indices, codes)
    assert len(files) == 6
    assert np.isfinite([float(line.split("\t")[1]) for line in files["codebook_use.tsv"].splitlines()[1:]]).all()
