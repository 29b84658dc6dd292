"""Which code a stage's result depends on: what dvc.yaml says, and tests/test_dvc_graph.py holds against the imports."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DVC_FILES = (Path("dvc.yaml"), Path("tasks/upstream/dvc.yaml"))
CODE = ("model/", "tasks/")  # how dependencies begin that are code


def code_version(stage: str) -> str:
    """A hash of the stage's code, the files that dvc.yaml names and all in the rooms it names; another one means that
    what was made with it may be stale."""
    stages: dict[str, dict[str, Any]] = {}
    for file in DVC_FILES:
        stages |= yaml.safe_load((ROOT / file).read_text())["stages"]
    entry = stages[stage].get("do", stages[stage])
    named = [ROOT / dependency for dependency in entry["deps"] if dependency.startswith(CODE)]
    files = [path for name in named for path in ([name] if name.is_file() else name.rglob("*"))]
    digest = hashlib.sha256()
    for path in sorted(path for path in files if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
