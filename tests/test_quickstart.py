"""README's section "Use it", run as it stands there where nothing but the wheel is installed."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh

from model.checkpoint import save_vae
from model.meshes import load_mesh
from model.metrics import compare
from model.sdf import normalised_surface
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens, Vocabulary
from model.vqvae import save_vqvae
from tasks import shards
from tasks.data import save_codebooks
from tasks.evaluate import evaluate
from tasks.run import load_settings, paths
from tests.readme import MESH, SECTION, make_project, run_shell_lines, the_block
from tests.wheel import ROOT, run


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    root = tmp_path_factory.mktemp("quickstart")
    make_project(root, environment)
    return root


@pytest.fixture(scope="module")
def printed(project: Path) -> str:
    """By the Python lines, which leave chair_decoded.ply and chair.npz."""
    return run([".venv/bin/python", "-c", the_block("python")], project)


def test_the_python_lines_work_as_written(project: Path, printed: str):
    truth = trimesh.load_mesh(project / MESH)
    tokenizer = ShapeTokenizer.from_pretrained()
    expected = tokenizer.encode(truth)
    assert printed.split("\n")[-2].startswith(f"{len(expected)} [")
    assert Tokens.load(project / "chair.npz") == expected

    decoded = trimesh.load_mesh(project / "chair_decoded.ply")
    np.testing.assert_allclose(decoded.bounds, truth.bounds, atol=0.75)  # a voxel is 0.6
    in_cube = trimesh.Trimesh((decoded.vertices - expected.center) / expected.scale, decoded.faces, process=False)
    surface = normalised_surface(truth.vertices, truth.faces)
    metrics = compare(in_cube, surface, num_points=20_000, seed=0)
    assert metrics.cd_l1 < 2 / tokenizer.resolution


def test_they_say_the_same_without_spconv(printed: str, environment: Path, tmp_path: Path):
    make_project(tmp_path, environment)
    without = "import sys; sys.modules |= {'cumm': None, 'spconv': None}\n"
    assert run([".venv/bin/python", "-c", without + the_block("python")], tmp_path) == printed


def test_the_reconstruction_is_as_far_from_the_mesh_as_evaluate_says(
    project: Path, printed: str, monkeypatch: pytest.MonkeyPatch
):
    """What the lines left in chair_decoded.ply, measured as evaluate does: with the same points.

    The file's coordinates are float32 in the mesh's frame, which moves points by 2e-6 of the cube; the figure has 1e-2.
    """
    monkeypatch.chdir(project)
    settings = load_settings(ROOT / "params.yaml")
    leave_what_stages_leave()
    evaluate(settings)
    table = pd.read_parquet(paths.EVALUATION / "per_shape.parquet").set_index(["shape", "row"])

    tokens, decoded = Tokens.load("chair.npz"), trimesh.load_mesh("chair_decoded.ply")
    in_cube = trimesh.Trimesh((decoded.vertices - tokens.center) / tokens.scale, decoded.faces, process=False)
    metrics = compare(
        in_cube,
        shards.open_shards(paths.SDF).read_surface("chair"),
        num_points=settings.evaluate.num_points,
        seed=settings.evaluate.seed,
    )
    row = table.loc[("chair", "stage2")]
    assert (metrics.cd_l1, metrics.cd_l2) == pytest.approx((row.cd_l1, row.cd_l2), rel=1e-3)
    assert row.num_tokens == tokens.indices.size


def leave_what_stages_leave() -> None:
    """The mesh as the only one of the test split, the VAE, a codebook, and histories of training."""
    tokenizer = ShapeTokenizer.from_pretrained()
    mesh = load_mesh(MESH)
    grid = tokenizer.voxelize(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
    paths.SDF.mkdir(parents=True)
    places = shards.write_shards(paths.SDF, [shards.shape_row("chair", grid)], shapes_per_shard=1)
    chair = {"name": "chair", "split": "test", "num_voxels": len(grid.coords)}
    index = pd.DataFrame([chair | place._asdict() for place in places])
    shards.write_index(paths.SDF / shards.INDEX, index, resolution=grid.resolution, truncation_voxels=2.0)
    surface = normalised_surface(mesh.vertices, mesh.faces)
    shards.write_surfaces(paths.SDF / shards.SURFACES, [("chair", surface)])
    save_vae(tokenizer.vqvae.vae, paths.VAE)
    paths.STAGE2.mkdir()
    save_vqvae(tokenizer.vqvae, paths.STAGE2)
    paths.CODEBOOK.mkdir()
    save_codebooks(tokenizer.vqvae.quantizer.codebooks, paths.CODEBOOK)
    paths.METRICS.mkdir()
    for stage in ("stage1", "stage2"):
        (paths.METRICS / f"{stage}_history.tsv").write_text("step\tloss\n1\t1.0\n")


def test_the_shell_lines_work_as_written(project: Path):
    run_shell_lines(project)
    (line,) = (project / "tokens.jsonl").read_text().splitlines()
    fields = json.loads(line)
    tokenizer = ShapeTokenizer.from_pretrained()
    tokens = tokenizer.encode(trimesh.load_mesh(project / MESH))
    assert fields["tokens"] == tokenizer.to_sequence(tokens)
    decoded = trimesh.load_mesh(project / "decoded" / f"{fields['name']}.glb")
    np.testing.assert_allclose(decoded.bounds, tokenizer.decode(tokens).bounds, atol=1e-3)


def test_the_numbers_of_the_text_are_those_of_the_settings():
    vocabularies = re.search(r"(\d+) integers\s+here, (\d+) at the published size", SECTION)
    assert vocabularies is not None
    shipped = ShapeTokenizer.from_pretrained().vocabulary.size
    assert [int(number) for number in vocabularies.groups()] == [shipped, published_vocabulary()]


def published_vocabulary() -> int:
    settings = load_settings(ROOT / "presets/published.yaml")
    return Vocabulary(settings.codebook.per_level, settings.voxelize.resolution // 8).size
