"""Reconstruction of whole shapes, where a GPU has too little memory for one."""

from pathlib import Path

import pytest
import torch

from model.errors import InputError
from model.sparse import SparseTensor
from model.vae import SDFTarget
from tasks.run import Settings, paths
from tasks.shards import open_shards
from tasks.stage2 import start_of_stage2
from tasks.training import validate


def test_the_shape_that_memory_is_too_small_for_is_named(small_project: Path, small_settings: Settings):
    shards = open_shards(paths.SDF)
    names = shards.names("train")
    vqvae = start_of_stage2(small_settings.codebook)
    seen: list[int] = []

    def reconstruct(target: SDFTarget) -> SparseTensor:
        seen.append(len(target.band.grid))
        if len(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return vqvae(target.band, target.plan).decoded

    with pytest.raises(InputError) as error:
        validate(reconstruct, shards, names, device=torch.device("cpu"))
    assert str(error.value).startswith(f"{names[1]}, {seen[1]:,} voxels, does not fit into the GPU's memory")
    assert "lower voxelize.resolution" in str(error.value)
