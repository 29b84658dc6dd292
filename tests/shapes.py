"""What tests share: random voxels with the awkward cases in, a real shape with a hole and sharp edges, one thread."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import trimesh

from model.sdf import SparseSDF, voxelize
from model.sparse import GroupNormSiLU, SparseTensor, from_arrays
from model.vae import SDFTarget


def random_coords(*, num_shapes: int, extent: int, seed: int, share: float = 0.3) -> torch.Tensor:
    """int32 [N, 4], shuffled: a random share of a corner block of each shape, and the opposite corner, alone."""
    rng = np.random.default_rng(seed)
    coords = []
    for shape in range(num_shapes):
        block = np.argwhere(rng.random((extent - 3, extent - 3, extent - 3)) < share)
        isolated = np.full((1, 3), extent - 1)
        coords.append(np.pad(np.concatenate([block, isolated]), ((0, 0), (1, 0)), constant_values=shape))
    return torch.from_numpy(rng.permutation(np.concatenate(coords)).astype(np.int32))


def random_tensor(
    channels: int, *, num_shapes: int = 2, extent: int = 9, seed: int = 0, share: float = 0.3
) -> SparseTensor:
    coords = random_coords(num_shapes=num_shapes, extent=extent, seed=seed, share=share)
    return SparseTensor(coords, torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(seed)))


def ring_and_box() -> trimesh.Trimesh:
    """A torus with a box through its hole: genus, sharp edges and a gap. Longest side 2, centred at 0."""
    ring = trimesh.creation.torus(0.75, 0.25, major_sections=32, minor_sections=16)
    return trimesh.util.concatenate([ring, trimesh.creation.box((0.4, 0.3, 1.4))])


def voxelized(mesh: trimesh.Trimesh, *, resolution: int = 32) -> SparseSDF:
    return voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=2.0)


def as_target(sdf: SparseSDF) -> SDFTarget:
    """What a data loader makes of it, without the loader."""
    extent = sdf.resolution
    return SDFTarget(from_arrays(sdf.coords, sdf.sdf, extent=extent), from_arrays(*sdf.beyond(), extent=extent))


def pool_mean(x: SparseTensor) -> SparseTensor:
    """As the encoder pools: the second part of a norm with pooling is its input, pooled."""
    return GroupNormSiLU(x.feats.shape[1]).forward_pooled(x)[1]


def by_coords(x: SparseTensor) -> dict[tuple[int, ...], np.ndarray]:
    """Features of each voxel, whatever the order of rows."""
    feats = x.feats.detach().numpy()
    return {tuple(coords): feats[row] for row, coords in enumerate(x.coords.tolist())}


def rows_in_order(x: SparseTensor) -> torch.Tensor:
    """Features in the order of batch, x, y, z."""
    return x.feats.detach()[x.grid.keys.argsort()]


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """In L2, in float64."""
    got, expected = got.detach().double(), expected.detach().double()
    return float((got - expected).norm() / expected.norm())


@contextmanager
def one_thread() -> Iterator[None]:
    """Small networks gain nothing from more, and lose much where other programs want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
