"""`kill -9` in the middle of stage 2, then `dvc repro` again: the same result as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file

from tasks.run import Settings, paths
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
STEPS = 60


@pytest.fixture
def dvc_project(small_project: Path, small_settings: Settings) -> Path:
    """The small project with the code, and with a graph of stage 2 alone."""
    for folder in ("model", "tasks"):
        shutil.copytree(ROOT / folder, small_project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    values = small_settings.model_dump(mode="json")
    values["stage2"] |= {"steps": STEPS, "save_every": 5}
    (small_project / "params.yaml").write_text(yaml.safe_dump(values))
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    graph["stages"] = {"stage2": graph["stages"]["stage2"]}
    graph.pop("plots", None)
    (small_project / "dvc.yaml").write_text(yaml.safe_dump(graph))
    run_dvc("init", "--no-scm").communicate()
    return small_project


def run_dvc(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_trainer_once_it_has_saved(dvc: subprocess.Popen[str]) -> None:
    wait_until(lambda: list(paths.RESUME.glob("stage2/*/state.pt")) or dvc.poll() is not None)
    assert dvc.poll() is None, dvc.communicate()[0]
    os.kill(int((paths.RESUME / "stage2.lock").read_text()), signal.SIGKILL)


def result() -> tuple[dict, pd.DataFrame, dict]:
    """Metrics, history without what the clock says, weights."""
    metrics = json.loads((paths.METRICS / "stage2.json").read_text())
    history = pd.read_csv(paths.METRICS / "stage2_history.tsv", sep="\t").filter(regex="^(?!seconds)")
    return metrics, history, load_file(paths.STAGE2 / "model.safetensors")


def test_a_killed_stage_goes_on_where_it_was(dvc_project: Path):
    first = run_dvc("repro", "stage2")
    kill_trainer_once_it_has_saved(first)
    first.communicate()
    assert first.returncode != 0
    assert not paths.STAGE2.exists()

    second = run_dvc("repro", "stage2")
    output = second.communicate()[0]
    assert second.returncode == 0, output
    assert "going on from step" in output
    metrics, history, weights = result()

    shutil.rmtree(paths.RESUME)
    undisturbed = run_dvc("repro", "--force", "stage2")
    output = undisturbed.communicate()[0]
    assert undisturbed.returncode == 0, output
    assert "going on from step" not in output
    expected_metrics, expected_history, expected_weights = result()
    assert metrics == expected_metrics
    pd.testing.assert_frame_equal(history, expected_history)
    assert all((weights[key] == value).all() for key, value in expected_weights.items())
