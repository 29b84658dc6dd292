"""Which voxels lie next to each other: spconv's search where there is a wheel of it, else one in plain torch."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError

try:
    from spconv.core import ConvAlgo
    from spconv.pytorch import ops as spconv_ops
except ImportError:  # macOS, aarch64, a Python newer than its wheels
    spconv_ops = None

KERNEL_SIZE = 3
NUM_OFFSETS = KERNEL_SIZE**3
CENTRE = NUM_OFFSETS // 2  # of two opposite offsets the numbers add up to NUM_OFFSETS - 1
MAX_PLACES_ON_CPU = 2**32  # spconv's hash table there has keys of 32 bits
MAX_ENTRIES_ON_CUDA = 2**31  # of a table: by its source, spconv counts them in 32 bits there


def find_neighbours(
    coords: Int[Tensor, "num_voxels 4"], *, num_shapes: int, extent: int
) -> Int[Tensor, "27 num_voxels"]:
    """Row of the voxel at each offset of a 3^3 kernel (x slowest), or -1 where there is none; int32.

    Coordinates are batch, x, y, z, int32, the batch index below `num_shapes`, the others below `extent`. Raises
    InputError for what spconv cannot tell apart on the CPU.
    """
    too_many = NUM_OFFSETS * len(coords) >= MAX_ENTRIES_ON_CUDA
    if spconv_ops is None or (coords.is_cuda and (spconv_ops.CPU_ONLY_BUILD or too_many)):
        return find_by_keys(coords, extent=extent)
    find = _find_by_spconv_on_cuda if coords.is_cuda else _find_by_spconv_on_cpu
    return find(coords, num_shapes, extent)


def pad_absent(
    feats: Float[Tensor, "num_inputs channels"], neighbours: Int[Tensor, "27 num_rows"]
) -> Float[Tensor, "num_rows_plus_1 channels"]:
    """Features where 1 + an entry of the table finds them: zeros first, for -1, and last, for rows without features."""
    return F.pad(feats, (0, 0, 1, neighbours.shape[1] - len(feats)))


def find_by_keys(coords: Int[Tensor, "num_voxels 4"], *, extent: int) -> Int[Tensor, "27 num_voxels"]:
    """In plain torch, on any device: a search among sorted keys, for half of the offsets, of which it fills both."""
    side = extent + 2  # with a rim of absent voxels: nobody's neighbour is found on the other side
    batch, x, y, z = coords.long().unbind(1)
    keys, order = (((batch * side + x + 1) * side + y + 1) * side + z + 1).sort()
    table = torch.full((NUM_OFFSETS, len(coords)), -1, dtype=torch.int32, device=coords.device)
    rows = order.int()
    table[CENTRE, order] = rows
    for offset in range(CENTRE):
        wanted = keys + ((offset // 9 - 1) * side + offset // 3 % 3 - 1) * side + offset % 3 - 1
        position = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        found = keys[position] == wanted
        here, there = rows[found], rows[position[found]]
        table[offset, here.long()] = there
        table[NUM_OFFSETS - 1 - offset, there.long()] = here
    return table


def _find_by_spconv_on_cpu(coords: Tensor, num_shapes: int, extent: int) -> Tensor:
    if num_shapes * extent**3 > MAX_PLACES_ON_CPU:
        raise InputError(
            f"{num_shapes} shapes of {extent}^3 voxels are more than the CPU's neighbour search tells apart; "
            f"give it at most {MAX_PLACES_ON_CPU // extent**3} at a time"
        )
    _, pairs, counts = spconv_ops.get_indice_pairs(coords, num_shapes, [extent] * 3, ConvAlgo.Native, **_geometry())
    table = torch.full((NUM_OFFSETS, len(coords)), -1, dtype=torch.int32)
    table[CENTRE] = torch.arange(len(coords), dtype=torch.int32)
    for offset in range(CENTRE):  # spconv counts only the first half; the second is its mirror image
        inputs, outputs = pairs[:, offset, : int(counts[offset])]
        table[offset, outputs.long()] = inputs
        table[NUM_OFFSETS - 1 - offset, inputs.long()] = outputs
    return table


def _find_by_spconv_on_cuda(coords: Tensor, num_shapes: int, extent: int) -> Tensor:
    algorithm, modes = ConvAlgo.MaskImplicitGemm, {"is_train": False, "do_sort": False}
    return spconv_ops.get_indice_pairs_implicit_gemm(
        coords, num_shapes, [extent] * 3, algorithm, **_geometry(), **modes
    )[2]


def _geometry() -> dict[str, object]:
    lists = {"ksize": KERNEL_SIZE, "stride": 1, "padding": 1, "dilation": 1, "out_padding": 0}
    return {name: [value] * 3 for name, value in lists.items()} | {"subm": True}
