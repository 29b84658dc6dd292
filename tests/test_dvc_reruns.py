"""What a change reruns. The graph is the real one; in each stage's place stands one that always writes anew."""

import os
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from tasks import paths

ROOT = Path(__file__).parents[1]
DVC_FILES = [Path("dvc.yaml"), Path("tasks/upstream/dvc.yaml")]
SMALL_VAE = Path("pretrained/small_vae.safetensors")

# The one output whose content is the same after every run, so that the stages behind it stay as they are.
STUB = f"""
import pathlib, time
for path in map(pathlib.Path, {{written!r}}):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("passed" if path == pathlib.Path({str(paths.PASS_TOKEN)!r}) else str(time.time_ns()))
"""


def names(entries: list[Any]) -> list[str]:
    return list(chain.from_iterable(entry if isinstance(entry, dict) else [entry] for entry in entries))


def write_project(root: Path) -> None:
    """The project's DVC files and parameters, an empty file for each module, and the stand-in for each stage."""
    for file in [*DVC_FILES, Path("params.yaml"), Path(".dvcignore")]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    set_parameter(root, "voxelize.meshes", str(paths.MESHES))
    set_parameter(root, "import_vae.checkpoint", str(SMALL_VAE))
    (root / SMALL_VAE).parent.mkdir()
    (root / SMALL_VAE).write_text("weights")
    stages = {
        name: stage for file in DVC_FILES for name, stage in yaml.safe_load((root / file).read_text())["stages"].items()
    }
    for dependency in {entry for stage in stages.values() for entry in stage["deps"]}:
        if dependency.startswith(("model/", "tasks/")):
            (root / dependency).parent.mkdir(exist_ok=True)
            (root / dependency).touch()
    (root / "tasks/settings.py").touch()  # what every stage begins with; there is nothing to check here
    for name, stage in stages.items():
        written = [path for kind in ("outs", "metrics", "plots") for path in names(stage.get(kind, []))]
        (root / f"tasks/{name}.py").write_text(STUB.format(written=written))


def set_parameter(root: Path, key: str, value: object) -> None:
    file = root / "params.yaml"
    parameters = yaml.safe_load(file.read_text())
    section, name = key.split(".")
    assert name in parameters[section]
    parameters[section][name] = value
    file.write_text(yaml.safe_dump(parameters))


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
        "fetch_meshes", "voxelize", "import_vae", "encode", "stage1", "gate", "stage2", "evaluate",
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
        ("evaluate.num_points", 10, {"evaluate"}),
        ("stage2.lr", 0.01, {"stage2", "evaluate"}),
        ("stage1.lr", 0.01, {"stage1", "gate", "stage2", "evaluate"}),
        ("gate.min_usage", 0.5, {"gate"}),  # still passes
        ("codebook.size", 16, {"stage1", "gate", "stage2", "evaluate"}),
        ("encode.train_symmetries", 1, {"encode", "stage1", "gate", "stage2", "evaluate"}),
        ("voxelize.truncation_voxels", 3.0, {"voxelize", "encode", "stage1", "gate", "stage2", "evaluate"}),
        ("pretrain_vae.lr", 0.1, set()),  # not part of the graph
    ],
)
def test_a_parameter_reruns_what_it_touches(project: Path, key: str, value: object, rerun: set[str]):
    set_parameter(project, key, value)
    assert reproduce(project) == rerun


@pytest.mark.parametrize(
    ("file", "rerun"),
    [
        ("model/metrics.py", {"evaluate"}),
        ("tasks/stage2.py", {"stage2", "evaluate"}),
        (str(SMALL_VAE), {"import_vae", "encode", "stage1", "gate", "stage2", "evaluate"}),
    ],
)
def test_a_file_reruns_what_it_touches(project: Path, file: str, rerun: set[str]):
    with (project / file).open("a") as stream:
        stream.write("\n")
    assert reproduce(project) == rerun
