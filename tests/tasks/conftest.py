"""A small project on disk: real shapes, a network of random weights, and what the first stages make of them."""

import shutil
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
import trimesh

from model.checkpoint import save_vae
from model.files import write_whole
from model.vae import SparseSDFVAE, VAEConfig
from tasks.encode import encode
from tasks.run import Settings, load_settings, paths
from tasks.shards import INDEX, shape_row, write_index, write_shards
from tasks.stage1 import stage1
from tasks.stage2 import stage2
from tests.shapes import one_thread, ring_and_box, voxelized
from tests.sharing import made_by_the_first

ROOT = Path(__file__).parents[2]
RESOLUTION, LATENT_CHANNELS, CODEBOOK_SIZE = 32, 8, 16


def shapes() -> dict[str, trimesh.Trimesh]:
    """Names begin with the split."""
    creation = trimesh.creation
    return {
        "train/ball": creation.icosphere(subdivisions=2),
        "train/can": creation.cylinder(radius=0.4, height=1.5),
        "train/cone": creation.cone(radius=0.6, height=1.2),
        "train/plate": creation.box((1.8, 1.2, 0.3)),
        "train/pill": creation.capsule(height=1.0, radius=0.4),
        "val/beam": creation.box((1.8, 0.4, 0.6)),
        "val/ring": creation.torus(0.7, 0.25),
        "test/ring_and_box": ring_and_box(),
    }


@pytest.fixture(scope="session")
def small_settings() -> Settings:
    shipped = load_settings(ROOT / "params.yaml")
    training = {"warmup_steps": 2, "log_every": 5, "save_every": 5}
    return shipped.model_copy(
        update={
            "encode": shipped.encode.model_copy(update={"train_symmetries": 2, "heldout_symmetries": 2}),
            "codebook": shipped.codebook.model_copy(
                update={"num_levels": 1, "num_codes": CODEBOOK_SIZE, "dim": LATENT_CHANNELS}
            ),
            "stage1": shipped.stage1.model_copy(
                update=training
                | {"steps": 20, "batch_size": 64, "kmeans_iterations": 2, "recon_shapes": 1, "recon_every": 10}
            ),
            "stage2": shipped.stage2.model_copy(
                update=training
                | {
                    "steps": 20,
                    "lr": 0.001,
                    "batch_voxels": 16000,
                    "shape_voxels": 11000,
                    "validate_every": 10,
                    "log_every": 1,
                }
                # The latents of random weights are large: with more, rounding grows from step to step.
                | {"lambda_commitment": 0.25}
            ),
        }
    )


@pytest.fixture(scope="session")
def two_levels(small_settings: Settings) -> Settings:
    levels = {"num_levels": 2, "num_codes": (CODEBOOK_SIZE, 4)}
    return small_settings.model_copy(update={"codebook": small_settings.codebook.model_copy(update=levels)})


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, small_settings: Settings) -> Path:
    """What voxelize, import_vae, encode, stage1 and a gate that passed leave behind."""

    def make(root: Path) -> None:
        with chdir(root), one_thread():
            write_shapes()
            write_vae()
            encode(small_settings)
            stage1(small_settings)
            forget_training()
            write_whole(paths.PASS_TOKEN, "passed\n")

    return made_by_the_first(tmp_path_factory, "project", make)


@pytest.fixture(scope="session")
def trained_once(made_once: Path, small_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and what stage2 makes of it."""

    def make(root: Path) -> None:
        shutil.copytree(made_once, root, dirs_exist_ok=True)
        with chdir(root), one_thread():
            stage2(small_settings)
            forget_training()

    return made_by_the_first(tmp_path_factory, "trained", make)


def forget_training() -> None:
    """So that the next run of a stage starts at step 0, and does not write the same result from its last state."""
    shutil.rmtree(paths.RESUME)


@contextmanager
def copy_of(project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """To work in."""
    shutil.copytree(project, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    with one_thread():
        yield folder


@pytest.fixture
def small_project(made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with copy_of(made_once, tmp_path, monkeypatch) as project:
        yield project


@pytest.fixture
def trained_project(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with copy_of(trained_once, tmp_path, monkeypatch) as project:
        yield project


def write_shapes() -> None:
    paths.SDF.mkdir(parents=True)
    sdfs = {name: voxelized(mesh, resolution=RESOLUTION) for name, mesh in shapes().items()}
    places = write_shards(paths.SDF, [shape_row(*item) for item in sdfs.items()], shapes_per_shard=4)
    index = pd.DataFrame(
        [
            {"name": name, "split": name.split("/")[0], "num_voxels": len(sdf.coords), **place._asdict()}
            for (name, sdf), place in zip(sdfs.items(), places, strict=True)
        ]
    )
    write_index(paths.SDF / INDEX, index, resolution=RESOLUTION, truncation_voxels=2.0)


def write_vae() -> None:
    torch.manual_seed(0)
    vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=LATENT_CHANNELS))
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    save_vae(vae, paths.VAE)
