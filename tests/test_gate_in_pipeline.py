"""The gate in the graph, run by dvc: a collapsed codebook goes no further, a mended one passes and nothing else reruns.

The gate is the real one, on real files; in the place of the other stages stand some that leave an example.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from tasks.run import paths
from tests.test_dvc_graph import STAGES
from tests.test_dvc_reruns import set_parameter, write_project

ROOT = Path(__file__).parents[1]
SIZE = 64
PYCACHE = shutil.ignore_patterns("__pycache__")

# 40 latents around each of 64 places, in training and held-out shapes alike.
ENCODE = f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch
from tasks.data import (ShapeLatents, latents_file, write_latents)
generator = torch.Generator().manual_seed(0)
places = 10 * torch.randn({SIZE}, 8, generator=generator)
folder = pathlib.Path({str(paths.LATENTS)!r})
folder.mkdir(parents=True)
for split in ("train", "val"):
    vectors = places.repeat(40, 1) + 0.1 * torch.randn({SIZE} * 40, 8, generator=generator)
    shape = ShapeLatents("shape", 0, torch.zeros(len(vectors), 3), vectors)
    write_latents(latents_file(folder, split), [shape])
pathlib.Path("metrics").mkdir(exist_ok=True)
pathlib.Path("metrics/encode.json").write_text(str(time.time_ns()))
"""

# k-means at its place when stage1.kmeans_iterations says so, else all codes in one corner.
STAGE1 = f"""
import pathlib, sys, yaml
sys.path.insert(0, {str(ROOT)!r})
import torch
from model.quantizer import (kmeans)
from tasks.data import (save_codebooks)
from tasks.data import (read_vectors)
folder = pathlib.Path({str(paths.CODEBOOK)!r})
vectors = read_vectors(pathlib.Path({str(paths.LATENTS)!r}), "train", max_per_view=None, seed=0)
generator = torch.Generator().manual_seed(0)
iterations = yaml.safe_load(open("params.yaml"))["stage1"]["kmeans_iterations"]
codes = 30 + 0.1 * torch.randn({SIZE}, 8, generator=generator)
if iterations > 1:
    codes = kmeans(vectors, {SIZE}, iterations=iterations, generator=generator)
folder.mkdir(parents=True)
save_codebooks([codes], folder)
pathlib.Path("metrics/stage1.json").write_text("[]")
pathlib.Path("metrics/stage1_history.tsv").write_text("step")
"""


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
