"""The search for neighbours against a dictionary; test_cuda.py has that of a GPU."""

from itertools import product

import pytest
import torch

from model.sparse.neighbours import find_neighbours
from tests.shapes import random_coords

CASES = {
    "sparse": random_coords(num_shapes=3, extent=12, seed=0),
    "full": random_coords(num_shapes=2, extent=7, seed=1, share=1.0),
    "one voxel": torch.tensor([[0, 0, 0, 0]], dtype=torch.int32),
    # at both ends of every axis, and the last of a shape beside the first of the next: nobody's neighbours
    "corners": torch.tensor(list(product((0, 1), (0, 3), (0, 3), (0, 3))), dtype=torch.int32),
}


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_found_at_each_offset_of_the_kernel(case):
    coords = CASES[case]
    num_shapes, extent = int(coords[:, 0].max()) + 1, int(coords[:, 1:].max()) + 1
    row_of = {tuple(coord): row for row, coord in enumerate(coords.tolist())}
    offsets = list(product((-1, 0, 1), repeat=3))
    expected = [[row_of.get((b, x + i, y + j, z + k), -1) for b, x, y, z in coords.tolist()] for i, j, k in offsets]
    table = find_neighbours(coords, num_shapes=num_shapes, extent=extent)
    assert table.dtype == torch.int32
    assert table.tolist() == expected


def test_shapes_of_any_extent_are_told_apart():
    """More places than 32 bits have numbers for."""
    coords = torch.tensor([[0, 1, 2, 3], [4, 1, 2, 3], [4, 1023, 1023, 1023]], dtype=torch.int32)
    table = find_neighbours(coords, num_shapes=5, extent=1024)
    assert table[13].tolist() == [0, 1, 2]
    assert table.sum() == 0 + 1 + 2 - 26 * 3
