"""Files in which encode leaves latents for stage 1 and the gate, one row per shape and symmetry; batches of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from model.distributed import own_part
from model.errors import InputError
from model.tables import one_row, read_rows, write_rows
from tasks.run import Stage1

REMEDY = "run dvc repro -f encode"
MAX_VECTORS = 10_000_000  # that are read: a thousand for each of 8192 codes, 2.6 GB at 64 channels

_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("symmetry", pa.int8()),  # number of model.sparse
        ("coords", pa.list_(pa.uint16())),  # latent voxels, x y z one after another
        ("mean", pa.list_(pa.float32())),  # posterior mean, latent_channels values per voxel
        ("latent_channels", pa.int32()),
    ]
)


class ShapeLatents(NamedTuple):
    name: str
    symmetry: int
    coords: Tensor  # [M, 3]
    mean: Tensor  # [M, latent_channels]


def latents_file(directory: Path, split: str, number: int = 0, of: int = 1) -> Path:
    return directory / f"{split}-{number:05d}-of-{of:05d}.parquet"


def latents_files(directory: Path, split: str) -> list[Path]:
    """Those of a split, in order: as many as the first says that there are, so that a missing one is missed."""
    found = sorted(directory.glob(f"{split}-*.parquet"))
    of = int(found[0].stem.rpartition("-")[2]) if found else 1
    return [latents_file(directory, split, number, of) for number in range(of)]


def write_latents(file: Path, views: Iterable[ShapeLatents]) -> int:
    """They are taken one by one. Returns the number of vectors."""
    count = 0

    def rows() -> Iterator[pa.RecordBatch]:
        nonlocal count
        for latents in views:
            count += len(latents.mean)
            yield _row(latents)

    write_rows(file, rows(), _SCHEMA)
    return count


def _row(latents: ShapeLatents) -> pa.RecordBatch:
    name, symmetry, coords, mean = latents
    values = [name, symmetry, coords.numpy().astype(np.uint16).ravel(), mean.numpy().ravel(), mean.shape[1]]
    return one_row(values, _SCHEMA)


def read_vectors(
    directory: Path, split: str, *, max_per_view: int | None, seed: int
) -> Float[Tensor, "num_vectors latent_channels"]:
    """All latent vectors of a split, at most max_per_view drawn from each shape and symmetry.

    They are read view by view, so that what is not drawn takes no memory. Where more than MAX_VECTORS come together, an
    even draw of them stays, and that is printed. Raises InputError where a file is missing or damaged, and where all
    hold no view, or NaN or infinity.
    """
    rng = np.random.default_rng(seed)
    parts: list[np.ndarray] = []
    num_kept = num_read = 0
    share = 1.0
    files = latents_files(directory, split)
    for view in chain.from_iterable(read_rows(file, remedy=REMEDY) for file in files):
        vectors = view["mean"][0].values.to_numpy().reshape(-1, view["latent_channels"][0].as_py())
        if max_per_view is not None and len(vectors) > max_per_view:
            vectors = vectors[np.sort(rng.choice(len(vectors), max_per_view, replace=False))]
        num_read += len(vectors)
        parts.append(vectors[rng.random(len(vectors)) < share] if share < 1 else vectors.copy())
        num_kept += len(parts[-1])
        while num_kept > MAX_VECTORS:
            share /= 2
            parts = [part[rng.random(len(part)) < 0.5] for part in parts]
            num_kept = sum(map(len, parts))
    if not parts:
        raise InputError(f"{files[0]} holds no shape; raise voxelize.val_share, or add meshes")
    if share < 1:
        print(f"{split}: {num_kept} of {num_read} latents, drawn at random: {MAX_VECTORS} are used at most")
    vectors = torch.from_numpy(np.concatenate(parts))
    if not vectors.isfinite().all():
        raise InputError(
            f"{directory} holds NaN or infinity, in {split}; look at metrics/import_vae.json, then {REMEDY}"
        )
    return vectors


@dataclass(frozen=True)
class VectorBatch:
    """This rank's part of a batch."""

    vectors: Float[Tensor, "batch dim"]
    draws: Float64[Tensor, " batch"]  # uniform, for what is decided by chance in this step
    names: tuple[str, ...] = ("cached latents",)

    @property
    def size(self) -> str:
        return f"{len(self.vectors):,} latents"

    @property
    def limits(self) -> str:
        return "batch_size"


def draw_vectors(vectors: Float[Tensor, "num_vectors dim"], params: Stage1, step: int) -> Iterator[VectorBatch]:
    """Batches of random vectors; which ones follows from the seed and the step."""
    while True:
        generator = torch.Generator().manual_seed(params.seed * 1_000_003 + step)
        rows = torch.randint(len(vectors), (params.batch_size,), generator=generator)
        draws = torch.rand(params.batch_size, generator=generator, dtype=torch.float64)
        yield VectorBatch(vectors[own_part(rows).to(vectors.device)], own_part(draws).to(vectors.device))
        step += 1
