"""What a change reruns. The graph is the real one; in each stage's place stands one that always writes anew."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.dvc_project import SMALL_VAE, set_parameter, write_project


def reproduce(root: Path) -> set[str]:
    """Names of the stages that dvc repro runs."""
    with pytest.MonkeyPatch.context() as here, Repo(str(root)) as repo:
        here.chdir(root)
        here.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        return {stage.name for stage in repo.reproduce(targets=["dvc.yaml"])}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first dvc repro."""
    root = tmp_path_factory.mktemp("finished")
    write_project(root)
    Repo.init(str(root), no_scm=True).close()
    assert reproduce(root) == {
        "fetch_meshes@run", "voxelize", "import_vae", "encode", "stage1", "gate", "stage2", "evaluate", "final_gate",
    }  # fmt: skip
    return root


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "project", symlinks=True)


def test_a_second_repro_runs_nothing(project: Path):
    assert reproduce(project) == set()


@pytest.mark.parametrize(
    ("key", "value", "rerun"),
    [
        ("evaluate.num_points", 10, {"evaluate", "final_gate"}),
        ("stage2.lr", 0.01, {"stage2", "evaluate", "final_gate"}),
        ("gate.min_usage", 0.5, {"gate"}),  # still passes
        ("codebook.num_codes", 16, {"stage1", "gate", "stage2", "evaluate", "final_gate"}),
        (
            "voxelize.truncation_voxels",
            3.0,
            {"voxelize", "encode", "stage1", "gate", "stage2", "evaluate", "final_gate"},
        ),
        ("pretrain_vae.lr", 0.1, set()),  # not part of the graph
        ("upstream.twin", ["run"], {"evaluate", "final_gate"}),  # a row more
        ("tracking.writer", "tensorboard", set()),
    ],
)
def test_a_parameter_reruns_what_it_touches(project: Path, key: str, value: object, rerun: set[str]):
    set_parameter(project, key, value)
    assert reproduce(project) == rerun


@pytest.mark.parametrize(
    ("file", "rerun"),
    [
        ("model/metrics/__init__.py", {"evaluate", "final_gate"}),
        ("model/plots/__init__.py", {"gate", "evaluate", "final_gate"}),
        (str(SMALL_VAE), {"import_vae", "encode", "stage1", "gate", "stage2", "evaluate", "final_gate"}),
    ],
)
def test_a_file_reruns_what_it_touches(project: Path, file: str, rerun: set[str]):
    with (project / file).open("a") as stream:
        stream.write("\n")
    assert reproduce(project) == rerun
