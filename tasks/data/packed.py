"""Shapes on their way to the network: bricks with a bit for each voxel, unfolded into coordinates on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from model.bricks import BRICK_SIZE
from model.sparse import SYMMETRIES, Grid, Places, SparseTensor, transform_coords, voxel_keys
from model.vae import SDFTarget
from tasks.shards import PackedSDF


@dataclass(frozen=True)
class PackedBatch:
    """Shapes as shards hold them, a bit for each voxel: little to load and to move, unfolded where the network is."""

    names: tuple[str, ...]
    resolution: int
    bricks: Int[Tensor, "num_bricks 4"]  # int32: shape, x, y, z, moved by the shape's symmetry
    symmetry: Int[Tensor, " num_bricks"]  # of the shape: how the voxels of a brick are to be moved
    band: UInt8[Tensor, "num_bricks 64"]
    inside: UInt8[Tensor, "num_bricks 64"]
    compared: Bool[Tensor, " num_bricks"]  # beyond the band too
    sdf: Float[Tensor, " num_band"]

    def to(self, device: torch.device) -> "PackedBatch":
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PackedBatch":
        """What DataLoader calls on a batch, so that it travels to the GPU while the GPU works."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PackedBatch":
        changed: dict[str, Any] = {key: change(value) for key, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **changed)

    def unfold(self) -> SDFTarget:
        """The voxels of the band and, in the bricks that are compared, those beyond it."""
        extent = self.resolution // BRICK_SIZE
        order = voxel_keys(self.bricks, extent).argsort()  # latent voxels are in the order of their keys elsewhere too
        bricks = Grid(self.bricks[order], num_shapes=len(self.names), extent=extent)
        row = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
        band, inside = _bits(self.band), _bits(self.inside)
        beyond = ~band & self.compared[:, None]
        outside_or_inside = 1 - 2 * inside[beyond].float()
        return SDFTarget(
            self._voxels(band, self.sdf, bricks, row), self._voxels(beyond, outside_or_inside, bricks, row)
        )

    def _voxels(
        self,
        chosen: Bool[Tensor, "num_bricks 512"],
        values: Float[Tensor, " num_chosen"],
        bricks: Grid,
        row: Int[Tensor, " num_bricks"],
    ) -> SparseTensor:
        """`bricks` are ours in another order, and `row` where each of ours is there."""
        brick, voxel = chosen.nonzero().unbind(1)
        local = _moved_voxels(brick.device)[self.symmetry[brick], voxel]
        coords = self.bricks[brick]
        coords[:, 1:] = coords[:, 1:] * BRICK_SIZE + local
        x, y, z = local.unbind(1)
        place = ((row[brick] * BRICK_SIZE + x) * BRICK_SIZE + y) * BRICK_SIZE + z
        places = Places(bricks, BRICK_SIZE, place)
        grid = Grid(coords, num_shapes=len(self.names), extent=self.resolution, places=places)
        return SparseTensor.on(grid, values[:, None])


def crop(shape: PackedSDF, max_voxels: int, rng: np.random.Generator) -> PackedSDF:
    """The shape where it has so few voxels in the band, else as many of its bricks as hold them, around one of them.

    A cube of bricks: those nearest by the largest difference of coordinates, the smaller sum of squares first.
    """
    if len(shape.sdf) <= max_voxels:
        return shape
    away = np.abs(shape.brick_coords - shape.brick_coords[rng.integers(len(shape.brick_coords))])
    order = np.lexsort(((away**2).sum(1), away.max(1)))
    num_voxels = np.bitwise_count(shape.band).sum(1, dtype=np.int64)
    kept = np.zeros(len(order), bool)
    kept[order[np.cumsum(num_voxels[order]) <= max_voxels]] = True
    sdf = shape.sdf[np.repeat(kept, num_voxels)]
    return PackedSDF(shape.brick_coords[kept], shape.band[kept], shape.inside[kept], sdf)


def batch_of_one(
    name: str, shape: PackedSDF, *, symmetry: int, compared: Bool[np.ndarray, " num_bricks"], resolution: int
) -> PackedBatch:
    moved = transform_coords(shape.brick_coords, symmetry, resolution=resolution // BRICK_SIZE)
    return PackedBatch(
        (name,),
        resolution,
        torch.from_numpy(np.pad(moved, ((0, 0), (1, 0)))),
        torch.full((len(moved),), symmetry),
        *(torch.from_numpy(part.copy()) for part in (shape.band, shape.inside, compared, shape.sdf)),
    )


def collate(batches: Sequence[PackedBatch]) -> PackedBatch:
    """Batches of one shape each, made into one batch."""
    index = torch.repeat_interleave(torch.tensor([len(batch.bricks) for batch in batches]))
    whole = {
        key: torch.cat([getattr(batch, key) for batch in batches])
        for key in ("bricks", "symmetry", "band", "inside", "compared", "sdf")
    }
    whole["bricks"][:, 0] = index
    return PackedBatch(tuple(name for batch in batches for name in batch.names), batches[0].resolution, **whole)


def _bits(packed: UInt8[Tensor, "num_bricks 64"]) -> Bool[Tensor, "num_bricks 512"]:
    """As numpy.unpackbits."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> places) & 1).bool().flatten(1)


@cache
def _moved_voxels(device: torch.device) -> Int[Tensor, "48 512 3"]:
    """Where each symmetry puts the voxels of a brick, which are in C order; int32."""
    voxels = np.indices((BRICK_SIZE,) * 3).reshape(3, -1).T.astype(np.int32)
    moved = [transform_coords(voxels, symmetry, resolution=BRICK_SIZE) for symmetry in range(len(SYMMETRIES))]
    return torch.from_numpy(np.stack(moved)).to(device)
