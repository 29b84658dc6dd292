"""README's section "Use it": its lines, and a folder to run them in."""

import re
from pathlib import Path

import trimesh

from tests.wheel import ROOT, run

_SECTION = re.search(r"^## Use it\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
assert _SECTION is not None
SECTION = _SECTION[1]
MESH = Path("chair.glb")


def the_block(language: str) -> str:
    """The lines of the section's only block in that language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    return block


def make_project(folder: Path, environment: Path) -> None:
    """A mesh, and .venv, which is `environment`."""
    folder.mkdir(exist_ok=True)
    mesh = trimesh.creation.capsule(height=2.0, radius=0.2).apply_scale(30).apply_translation([7, -80, 900])
    mesh.export(folder / MESH)
    (folder / ".venv").symlink_to(environment)


def run_shell_lines(folder: Path) -> None:
    run(["sh", "-e", "-c", 'PATH="$PWD/.venv/bin:$PATH"\n' + the_block("sh")], folder)
