"""The gate in the graph, run by dvc: a collapsed codebook goes no further, a mended one passes and nothing else reruns.

The gate is the real one, on real files; in the place of the other stages stand some that leave an example.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dvc.repo import Repo

from model.quantizer import kmeans
from tasks.data import ShapeLatents, latents_file, save_codebooks, write_latents
from tasks.run import paths
from tests.test_dvc_graph import STAGES
from tests.test_dvc_reruns import set_parameter, write_project

ROOT = Path(__file__).parents[1]
SIZE = 64
PYCACHE = shutil.ignore_patterns("__pycache__")

# Stand-ins that take what lies ready: latents, and codes that are good when stage1.kmeans_iterations says so.
ENCODE = f"""
import pathlib, shutil, time
shutil.copytree("ready/latents", {str(paths.LATENTS)!r})
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/encode.json").write_text(str(time.time_ns()))
"""
STAGE1 = f"""
import pathlib, shutil, yaml
iterations = yaml.safe_load(open("params.yaml"))["stage1"]["kmeans_iterations"]
shutil.copytree("ready/good" if iterations > 1 else "ready/collapsed", {str(paths.CODEBOOK)!r})
pathlib.Path("metrics/stage1.json").write_text("[]")
pathlib.Path("metrics/stage1_history.tsv").write_text("step")
"""


def write_ready(folder: Path) -> None:
    """40 latents around each of 64 places, in training and held-out shapes alike, and two codebooks of 64 codes.

    Those of k-means are at the places, the others all in one corner.
    """
    for name in ("latents", "good", "collapsed"):
        (folder / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    places = 10 * torch.randn(SIZE, 8, generator=generator)
    for split in ("train", "val"):
        vectors = places.repeat(40, 1) + 0.1 * torch.randn(SIZE * 40, 8, generator=generator)
        shape = ShapeLatents("shape", 0, torch.zeros(len(vectors), 3), vectors)
        write_latents(latents_file(folder / "latents", split), [shape])
    save_codebooks([kmeans(vectors, SIZE, iterations=20, generator=generator)], folder / "good")
    save_codebooks([30 + 0.1 * torch.randn(SIZE, 8, generator=generator)], folder / "collapsed")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_project(tmp_path)
    shutil.rmtree(tmp_path / "model")
    shutil.copytree(ROOT / "model", tmp_path / "model", ignore=PYCACHE)
    stages = {f"{stage}.py" for stage in set(STAGES) - {"gate"}}
    for module in (ROOT / "tasks").rglob("*.py"):
        if module.name not in stages:
            shutil.copy(module, tmp_path / module.relative_to(ROOT))
    (tmp_path / "tasks/encode.py").write_text(ENCODE)
    (tmp_path / "tasks/stage1.py").write_text(STAGE1)
    write_ready(tmp_path / "ready")
    set_parameter(tmp_path, "stage1.kmeans_iterations", 1)
    Repo.init(str(tmp_path), no_scm=True).close()
    return tmp_path


def dvc_repro(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", "repro", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def ran(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_a_collapsed_codebook_goes_no_further_and_a_mended_one_passes(project: Path):
    collapsed = dvc_repro(project, "stage2")
    assert collapsed.returncode != 0
    for part in ("usage", "(gate.min_usage: >= 0.9)", "set stage1.init: kmeans, raise stage1.kmeans_iterations"):
        assert part in collapsed.stderr, collapsed.stderr
    assert ran(collapsed.stdout)[-1] == "gate"
    assert (project / paths.CODEBOOK_PLOTS / "codebook_use.png").is_file()

    bypass = dvc_repro(project, "--single-item", "stage2")
    assert bypass.returncode != 0
    assert str(paths.PASS_TOKEN) in bypass.stderr
    assert not (project / paths.STAGE2).exists()

    set_parameter(project, "stage1.kmeans_iterations", 20)
    mended = dvc_repro(project, "stage2")
    assert mended.returncode == 0, mended.stderr
    assert ran(mended.stdout) == ["stage1", "gate", "stage2"]
    assert (project / paths.STAGE2).exists()
