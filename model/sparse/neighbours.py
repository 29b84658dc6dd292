"""Which voxels lie next to each other: a search in plain torch or, on a GPU where there is a wheel of it, spconv's."""

from functools import cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

KERNEL_SIZE = 3
NUM_OFFSETS = KERNEL_SIZE**3
CENTRE = NUM_OFFSETS // 2  # of two opposite offsets the numbers add up to NUM_OFFSETS - 1


def find_neighbours(
    coords: Int[Tensor, "num_voxels 4"], *, num_shapes: int, extent: int
) -> Int[Tensor, "27 num_voxels"]:
    """Row of the voxel at each offset of a 3^3 kernel (x slowest), or -1 where there is none; int32.

    Coordinates are batch, x, y, z, int32, the batch index below `num_shapes`, the others below `extent`.
    """
    spconv = _spconv_on_cuda() if coords.is_cuda else None
    if spconv is None:
        return find_by_keys(coords, extent=extent)
    lists = {"ksize": KERNEL_SIZE, "stride": 1, "padding": 1, "dilation": 1, "out_padding": 0}
    geometry = {name: [value] * 3 for name, value in lists.items()}
    modes = {"subm": True, "is_train": False, "do_sort": False}
    algorithm = spconv.ConvAlgo.MaskImplicitGemm
    return spconv.get_indice_pairs_implicit_gemm(coords, num_shapes, [extent] * 3, algorithm, **geometry, **modes)[2]


@cache
def _spconv_on_cuda() -> Any:
    """spconv's module of such operators, None where it is not installed (aarch64, a new Python) or knows no GPU."""
    try:
        from spconv.pytorch import ops
    except ImportError:
        return None
    return None if ops.CPU_ONLY_BUILD else ops


def find_by_keys(coords: Int[Tensor, "num_voxels 4"], *, extent: int) -> Int[Tensor, "27 num_voxels"]:
    """In plain torch, on any device: a search among sorted keys, for half of the offsets, of which it fills both.

    Keys of neighbours along z are one apart: where the middle one of three is or would be, the others are beside it.
    """
    side = extent + 2  # with a rim of absent voxels: nobody's neighbour is found on the other side
    batch, x, y, z = coords.long().unbind(1)
    keys, order = (((batch * side + x + 1) * side + y + 1) * side + z + 1).sort()
    table = torch.full((NUM_OFFSETS, len(coords)), -1, dtype=torch.int32, device=coords.device)
    table[CENTRE, order] = order.int()
    for column in range(CENTRE // 3 + 1):  # of offsets along x and y; of the last one, half
        middle = keys + ((column // 3 - 1) * side + column % 3 - 1) * side
        place = torch.searchsorted(keys, middle)
        beyond = place + (keys[place.clamp(max=len(keys) - 1)] == middle)
        for offset, candidate in enumerate((place - 1, place, beyond), start=3 * column):
            if offset == CENTRE:
                break
            position = candidate.clamp(0, len(keys) - 1)
            rows = (keys[position] == middle + offset % 3 - 1).nonzero()[:, 0]
            here, there = order[rows], order[position[rows]]
            table[offset, here] = there.int()
            table[NUM_OFFSETS - 1 - offset, there] = here.int()
    return table
