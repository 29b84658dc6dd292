"""README's section "Use it", run as it stands there, on a tokenizer and meshes made for the test."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from model.metrics import compare
from model.sdf import normalised_surface
from model.tokens import Tokens
from tests.small_tokenizer import ROOT, small_tokenizer

SECTION = re.search(r"^## Use it\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
assert SECTION is not None
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", SECTION[1], re.DOTALL | re.MULTILINE)
MESH = Path("data/meshes/coffeemachine/body1.stl")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def the_block(language: str) -> str:
    (block,) = (text for name, text in BLOCKS if name == language)
    return block


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder such as make repro leaves, as far as the section uses it."""
    root = tmp_path_factory.mktemp("quickstart")
    small_tokenizer().save_pretrained(root / "artifacts" / "tokenizer")
    (root / MESH).parent.mkdir(parents=True)
    mesh = trimesh.creation.capsule(height=1.0, radius=0.4).apply_scale(30).apply_translation([7, -80, 900])
    mesh.export(root / MESH)
    command = root / ".venv" / "bin" / "shape-tokenizer"
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tasks.command_line "$@"\n')
    command.chmod(0o755)
    return root


def test_the_python_lines_work_as_written(project: Path):
    done = subprocess.run(  # noqa: PLW1510 - stderr says more than the exception would
        [sys.executable, "-c", the_block("python")], cwd=project, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    truth = trimesh.load_mesh(project / MESH)
    tokenizer = small_tokenizer()
    expected = tokenizer.encode(truth)
    assert done.stdout.split("\n")[-2].startswith(f"{len(expected)} [")
    assert Tokens.load(project / "body1.npz") == expected

    decoded = trimesh.load_mesh(project / "body1.ply")
    np.testing.assert_allclose(decoded.bounds, truth.bounds, atol=1.5)  # a voxel is 1.2
    in_cube = trimesh.Trimesh((decoded.vertices - expected.center) / expected.scale, decoded.faces, process=False)
    surface = normalised_surface(truth.vertices, truth.faces)
    metrics = compare(in_cube, surface, num_points=20_000, seed=0)
    assert metrics.cd_l1 < 2 / tokenizer.resolution


def test_the_shell_lines_work_as_written(project: Path):
    done = subprocess.run(  # noqa: PLW1510 - stderr says more than the exception would
        ["sh", "-e", "-c", the_block("sh")], cwd=project, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (line,) = (project / "tokens.jsonl").read_text().splitlines()
    fields = json.loads(line)
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(trimesh.load_mesh(project / MESH))
    assert fields["tokens"] == tokenizer.to_sequence(tokens)
    decoded = trimesh.load_mesh(project / "decoded" / f"{fields['name']}.glb")
    np.testing.assert_allclose(decoded.bounds, tokenizer.decode(tokens).bounds, atol=1e-3)


def test_the_numbers_of_the_text_are_those_of_the_settings():
    vocabularies = re.search(r"(\d+) integers here, (\d+) at the published size", SECTION[1])
    assert vocabularies is not None
    expected = [size_of_vocabulary(ROOT / name) for name in ("params.yaml", "presets/published.yaml")]
    assert [int(number) for number in vocabularies.groups()] == expected


def size_of_vocabulary(parameters: Path) -> int:
    from model.tokens import Vocabulary
    from tasks.settings import load_settings

    settings = load_settings(parameters)
    return Vocabulary(settings.codebook.size, settings.voxelize.resolution // 8).size
