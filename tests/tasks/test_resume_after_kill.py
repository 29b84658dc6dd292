"""`kill -9` in the middle of stage 2, then `dvc repro` again: the same result as if nothing had happened."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from safetensors.torch import load_file

from tasks.run import Settings, load_settings, paths
from tasks.stage2 import stage2

ROOT = Path(__file__).parents[2]
# What every Python on whose path it is begins with: the trainer's is killed once it has saved step 5.
KILLED = """
import os, signal, sys
if "tasks.stage2" in sys.orig_argv:
    sys.path.insert(0, os.getcwd())
    from tasks.training import ResumePoint
    save = ResumePoint.save
    def save_and_be_killed(self, state):
        save(self, state)
        if state["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    ResumePoint.save = save_and_be_killed
"""


@pytest.fixture
def dvc_project(small_project: Path, small_settings: Settings) -> Path:
    """The small project with the code, and with a graph of stage 2 alone."""
    for folder in ("model", "tasks"):
        shutil.copytree(ROOT / folder, small_project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    values = small_settings.model_dump(mode="json")
    values["stage2"] |= {"steps": 12, "save_every": 5}
    (small_project / "params.yaml").write_text(yaml.safe_dump(values))
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    graph["stages"] = {"stage2": graph["stages"]["stage2"]}
    graph.pop("plots", None)
    (small_project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    Repo.init(no_scm=True).close()
    return small_project


def repro(**environment: str) -> "subprocess.CompletedProcess[str]":
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "stage2"],
        env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def result() -> tuple[dict, pd.DataFrame, dict]:
    """Metrics, history without what the clock says, weights."""
    metrics = json.loads((paths.METRICS / "stage2.json").read_text())
    history = pd.read_csv(paths.METRICS / "stage2_history.tsv", sep="\t").filter(regex="^(?!seconds)")
    return metrics, history, load_file(paths.STAGE2 / "model.safetensors")


def test_a_killed_stage_goes_on_where_it_was(dvc_project: Path, tmp_path_factory: pytest.TempPathFactory):
    hook = tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(KILLED)
    first = repro(PYTHONPATH=str(hook))
    assert first.returncode != 0
    assert re.search(r"exited with (-9|137)\b", first.stdout), first.stdout  # by whether its shell became the trainer
    assert not paths.STAGE2.exists()

    second = repro()
    assert second.returncode == 0, second.stdout
    assert "going on from step 5" in second.stdout
    metrics, history, weights = result()

    shutil.rmtree(paths.RESUME)
    stage2(load_settings())  # with one thread, as the others: the last bits of sums depend on their number
    expected_metrics, expected_history, expected_weights = result()
    assert metrics == expected_metrics
    pd.testing.assert_frame_equal(history, expected_history)
    assert all((weights[key] == value).all() for key, value in expected_weights.items())
