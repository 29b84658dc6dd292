"""Which voxels the decoder must compute so that it is exact at the voxels that a loss reads.

The decoder turns every latent voxel into 8^3 voxels, three to four times what the band has. Going backwards from the
wanted voxels, each 3^3 convolution needs one ring more and each subdivision the parents. Values and gradients are those
of the full decode, for a part of its time and memory. The plan follows from coordinates alone, so it can be made while
the network works on the batch before. Sets are masks over the bricks of the latent voxels: no sorting, no hashing.
"""

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from ..sparse import NUM_CHILDREN, Grid, Subdivision, find_places, neighbour_table

Mask = Bool[Tensor, "num_latents side side side"]


@dataclass(frozen=True)
class DecodePlan:
    """The subdivisions from the latent voxels to the wanted ones, which are the rows of the result, in their order.

    Each is of the leading rows of the grid before it: what a later step needs comes first.
    """

    subdivisions: tuple[Subdivision, ...]


def plan_decode(latents: Grid, wanted: Int[Tensor, "num_wanted 4"], *, num_levels: int) -> DecodePlan:
    """The plan for `num_levels` subdivisions of `latents`. Wanted voxels must be distinct.

    Raises ValueError for a wanted voxel that lies in no latent voxel.
    """
    wanted_at, found = find_places(wanted, latents, 2**num_levels)
    if not found.all():
        raise ValueError(f"voxel {wanted[~found][0].tolist()} lies in no latent voxel; the latents are another shape's")
    return plan_decode_of_places(latents, wanted_at, num_levels=num_levels)


def plan_decode_of_places(latents: Grid, wanted_at: Int[Tensor, " num_wanted"], *, num_levels: int) -> DecodePlan:
    """As plan_decode, of voxels of which is known where they stand in the bricks of the latent voxels."""
    side = 2**num_levels
    outputs = torch.zeros(len(latents) * side**3, dtype=torch.bool, device=wanted_at.device)
    outputs[wanted_at] = True
    outputs = outputs.view(-1, side, side, side)

    neighbours = neighbour_table(latents)
    masks: list[tuple[Mask, Mask | None]] = []  # coarsest first
    parents = None  # of the next finer level's outputs, and what these read
    for level in reversed(range(num_levels)):
        masks.insert(0, (outputs, parents))
        if level:
            parents = _any_child(_dilate(outputs, neighbours))
            outputs = _dilate(parents, neighbours)

    subdivisions = []
    row, num_parents = torch.arange(len(latents), device=wanted_at.device).view(-1, 1, 1, 1), len(latents)
    for outputs, parents in masks:
        first = wanted_at if parents is None else _indices(parents)
        others = wanted_at[:0] if parents is None else _indices(outputs & ~parents)
        order = torch.cat([first, others])
        rows = torch.arange(len(order), dtype=torch.int32, device=order.device)
        brick, *local = torch.unravel_index(order, outputs.shape)
        octant = (local[0] % 2 * 2 + local[1] % 2) * 2 + local[2] % 2
        children = rows.new_full((NUM_CHILDREN, num_parents), -1)
        children.view(-1)[octant * num_parents + row[brick, *(axis // 2 for axis in local)]] = rows
        coords = latents.coords[brick]
        coords[:, 1:] = coords[:, 1:] * outputs.shape[1] + torch.stack(local, 1)
        fine = Grid(coords, num_shapes=latents.num_shapes, extent=latents.extent * outputs.shape[1])
        subdivisions.append(Subdivision(fine, children))
        row = torch.full_like(outputs, -1, dtype=torch.int64)
        row.view(-1)[order] = rows.long()
        num_parents = len(first)
    return DecodePlan(tuple(subdivisions))


def _indices(mask: Mask) -> Int[Tensor, " num_set"]:
    return mask.flatten().nonzero()[:, 0]


def _any_child(mask: Mask) -> Mask:
    half = mask.shape[1] // 2
    return mask.view(-1, half, 2, half, 2, half, 2).any(6).any(4).any(2)


def _dilate(mask: Mask, neighbours: Int[Tensor, "27 num_latents"]) -> Mask:
    """The voxels of the bricks that are set or have a set one among their 26 neighbours."""
    num_bricks, side = mask.shape[:2]
    brick_at, voxel_at = _halo(side, mask.device)
    bricks = neighbours.T.index_select(1, brick_at)
    source = torch.where(bricks < 0, num_bricks, bricks) * side**3 + voxel_at
    padded = F.pad(mask.flatten(), (0, side**3))  # the last brick stands for every absent one
    halo = padded.index_select(0, source.flatten()).view(num_bricks, side + 2, side + 2, side + 2)
    for axis in (1, 2, 3):
        below, here, above = (halo.narrow(axis, start, side) for start in range(3))
        halo = below | here | above
    return halo


@cache
def _halo(side: int, device: torch.device) -> tuple[Int[Tensor, " num_places"], Int[Tensor, " num_places"]]:
    """For each of the (side + 2)^3 places of a brick and the ring around it: which of the 27 bricks, which voxel there.

    Bricks are in the order of neighbour_table. int32.
    """
    places = torch.cartesian_prod(*[torch.arange(-1, side + 1)] * 3)
    powers = torch.tensor([9, 3, 1]), torch.tensor([side * side, side, 1])
    bricks = (places.div(side, rounding_mode="floor") + 1) * powers[0]
    return bricks.sum(1).int().to(device), (places % side * powers[1]).sum(1).int().to(device)
