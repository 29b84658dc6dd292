"""A project with the real graph, and in each stage's place one that is done at once."""

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from tasks.run import paths

ROOT = Path(__file__).parents[1]
DVC_FILES = [Path("dvc.yaml"), Path("tasks/upstream/dvc.yaml")]
SMALL_VAE = Path("pretrained/small_vae.safetensors")

# The gate's pass and its pictures of the codebook are the same after every run, so that what reads them stays as it is.
STUB = f"""
import json, pathlib, time
for path in map(pathlib.Path, {{written!r}}):
    path.parent.mkdir(parents=True, exist_ok=True)
    now = json.dumps(dict(made_ns=time.time_ns()))
    same = path == pathlib.Path({str(paths.PASS_TOKEN)!r}) or path.parent == pathlib.Path({str(paths.CODEBOOK_PLOTS)!r})
    path.write_text("the same" if same else now)
"""


def names(entries: list[Any]) -> list[str]:
    return list(chain.from_iterable(entry if isinstance(entry, dict) else [entry] for entry in entries))


def write_project(root: Path) -> None:
    """The project's DVC files and parameters, empty modules and rooms, and the stand-in for each stage."""
    for file in [*DVC_FILES, Path("params.yaml"), Path(".dvcignore"), Path("tasks/run/commands.yaml")]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, root / file)
    set_parameter(root, "voxelize.meshes", str(paths.MESHES))
    set_parameter(root, "import_vae.checkpoint", str(SMALL_VAE))
    (root / SMALL_VAE).parent.mkdir()
    (root / SMALL_VAE).write_text("weights")
    stages = {
        name: stage.get("do", stage)
        for file in DVC_FILES
        for name, stage in yaml.safe_load((root / file).read_text())["stages"].items()
    }
    for dependency in {entry for stage in stages.values() for entry in stage["deps"]}:
        if dependency.startswith(("model/", "tasks/")):
            module = root / (dependency if dependency.endswith(".py") else f"{dependency}/__init__.py")
            module.parent.mkdir(parents=True, exist_ok=True)
            module.touch()
    (root / "tasks/run/check.py").touch()  # what every stage begins with; there is nothing to check here
    for name, stage in stages.items():
        (root / f"tasks/{name}.py").write_text(STUB.format(written=names([*stage["outs"], *stage.get("plots", [])])))


def set_parameter(root: Path, key: str, value: object) -> None:
    file = root / "params.yaml"
    parameters = yaml.safe_load(file.read_text())
    section, name = key.split(".")
    assert name in parameters[section]
    parameters[section][name] = value
    file.write_text(yaml.safe_dump(parameters))
