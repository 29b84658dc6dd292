import dataclasses
from itertools import product

import numpy as np
import pytest
import torch

from model.sparse import Grid, SparseTensor, batch_tensors, find_rows
from tests.model import numpy_reference
from tests.shapes import by_coords, pool_mean, random_coords, random_tensor


def grid_of(*coords: tuple[int, int, int, int]) -> Grid:
    return Grid(torch.tensor(coords, dtype=torch.int32))


# --- what a grid accepts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "dtype"), [((3, 4), torch.int64), ((3, 3), torch.int32), ((4,), torch.int32)])
def test_coords_of_another_type_or_shape_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=r"expected int32 \[N, 4\]"):
        Grid(torch.zeros(shape, dtype=dtype))


def test_a_grid_without_voxels_is_refused():
    with pytest.raises(ValueError, match="at least one voxel"):
        Grid(torch.zeros(0, 4, dtype=torch.int32))


def test_feats_and_coords_have_as_many_rows():
    with pytest.raises(ValueError, match="feats have 2 rows but coords have 3"):
        SparseTensor(torch.zeros(3, 4, dtype=torch.int32), torch.zeros(2, 1))


def test_a_sparse_tensor_does_not_change():
    x = random_tensor(1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        x.feats = torch.zeros(1)


def test_number_of_shapes_and_extent_are_read_off_the_coords():
    grid = grid_of((0, 1, 2, 3), (2, 0, 7, 0))
    assert (grid.num_shapes, grid.extent) == (3, 8)
    assert grid.shape_rows.offsets.diff().tolist() == [1, 0, 1]


def test_keys_tell_voxels_apart():
    grid = Grid(random_coords(num_shapes=3, extent=9, seed=0))
    assert len(set(grid.keys.tolist())) == len(grid)


# --- pooling and subdivision -----------------------------------------------------------------------------------------


def test_pooling_sums_the_children_present_over_one_more_than_their_number():
    x = random_tensor(5, num_shapes=3)
    expected = numpy_reference.pool_mean(x.coords.tolist(), x.feats.double().numpy())
    pooled = by_coords(pool_mean(x))
    assert pooled.keys() == expected.keys()
    for coord, feats in pooled.items():
        np.testing.assert_allclose(feats, expected[coord], rtol=1e-6, atol=1e-7)


def test_a_single_voxel_pools_to_half_of_itself():
    pooled = pool_mean(SparseTensor(torch.tensor([[0, 5, 3, 6]], dtype=torch.int32), torch.tensor([[4.0]])))
    assert pooled.coords.tolist() == [[0, 2, 1, 3]]
    assert pooled.feats.tolist() == [[2.0]]


def test_every_voxel_is_subdivided_into_its_eight_children():
    grid = random_tensor(1, num_shapes=3).grid
    fine, children = grid.subdivision
    assert len(fine) == 8 * len(grid) == len(set(fine.keys.tolist()))
    for octant, rows in enumerate(children):
        position = torch.tensor([0, octant // 4, octant // 2 % 2, octant % 2])
        assert torch.equal(fine.coords[rows], grid.coords * torch.tensor([1, 2, 2, 2]) + position)


def test_pooling_knows_parents_and_children():
    grid = random_tensor(1, num_shapes=3).grid
    coarse, parent, children, divisor = grid.pooling
    assert torch.equal(coarse.coords[parent], grid.coords // torch.tensor([1, 2, 2, 2]))
    for octant, rows in enumerate(children):
        present = rows >= 0
        position = torch.tensor([0, octant // 4, octant // 2 % 2, octant % 2])
        assert torch.equal(grid.coords[rows[present]], (coarse.coords * torch.tensor([1, 2, 2, 2]) + position)[present])
    assert children[children >= 0].sort().values.tolist() == list(range(len(grid)))
    assert torch.equal(divisor, 1 + torch.bincount(parent).float())


def test_gradient_of_pooling_is_the_share_of_each_child():
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [0, 4, 4, 4]], dtype=torch.int32)
    feats = torch.randn(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(pool_mean(SparseTensor(coords, feats)).feats.sum(), feats)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 3], [1 / 3], [1 / 2]]).expand(3, 2))


def test_the_rows_of_each_shape_are_known():
    grid = random_tensor(1, num_shapes=3).grid
    order, offsets = grid.shape_rows
    assert order.sort().values.tolist() == list(range(len(grid)))
    for shape, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        assert (grid.coords[order[start:end], 0] == shape).all()


def test_a_voxel_reaches_the_pooled_voxel_of_its_own_cell_and_no_other():
    x = random_tensor(1)
    x.feats.requires_grad_()
    pooled = pool_mean(x)
    row = 3
    (gradient,) = torch.autograd.grad(pooled.feats[row], x.feats)
    batch, *position = pooled.coords[row].tolist()
    reached = {tuple(coord) for coord in x.coords[gradient.flatten() != 0].tolist()}
    present = {tuple(coord) for coord in x.coords.tolist()}
    cell = set(product([batch], *((2 * p, 2 * p + 1) for p in position)))
    assert reached == cell & present
    np.testing.assert_allclose(gradient[gradient != 0], 1 / (len(reached) + 1))


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0, 2])
def test_windows_group_the_voxels_by_shifted_coordinate_div_size(shift):
    grid = Grid(random_coords(num_shapes=2, extent=11, seed=2))
    windows = grid.windows(4, shift)
    groups = [rows.tolist() for rows in windows.order.tensor_split(windows.offsets[1:-1].long())]
    expected: dict[tuple[int, ...], set[int]] = {}
    for row, coord in enumerate(grid.coords.tolist()):
        expected.setdefault(numpy_reference.window_of(tuple(coord), size=4, shift=shift), set()).add(row)
    assert sorted(map(sorted, groups)) == sorted(map(sorted, expected.values()))
    assert windows.longest == max(map(len, expected.values()))


def test_shifted_windows_are_others():
    grid = grid_of((0, 3, 0, 0), (0, 4, 0, 0))
    assert len(grid.windows(4, 0).offsets) - 1 == 2
    assert len(grid.windows(4, 2).offsets) - 1 == 1


# --- finding voxels --------------------------------------------------------------------------------------------------


def test_rows_are_found_by_coordinate():
    grid = Grid(random_coords(num_shapes=2, extent=6, seed=3))
    row_of = {tuple(coord): row for row, coord in enumerate(grid.coords.tolist())}
    wanted = list(product(range(3), range(8), range(8), range(8)))  # beyond the grid's extent and its shapes too
    rows, found = find_rows(torch.tensor(wanted, dtype=torch.int32), grid)
    assert found.tolist() == [coord in row_of for coord in wanted]
    assert rows[found].tolist() == [row_of[coord] for coord in wanted if coord in row_of]


# --- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_numbers_its_shapes_and_keeps_their_voxels():
    shapes = [random_tensor(2, num_shapes=1, extent=extent, seed=extent) for extent in (5, 9, 6)]
    batch = batch_tensors(shapes)
    assert (batch.grid.num_shapes, batch.grid.extent) == (3, 9)
    for index, shape in enumerate(shapes):
        own = batch.coords[:, 0] == index
        torch.testing.assert_close(batch.coords[own, 1:], shape.coords[:, 1:])
        torch.testing.assert_close(batch.feats[own], shape.feats)
