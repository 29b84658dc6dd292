"""README's section "Use it": its lines, and a folder to run them in."""

import re
from pathlib import Path

import trimesh

from tests.small_tokenizer import ROOT, small_tokenizer

_SECTION = re.search(r"^## Use it\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
assert _SECTION is not None
SECTION = _SECTION[1]
MESH = Path("data/meshes/coffeemachine/body1.stl")


def the_block(language: str) -> str:
    """The lines of the section's only block in that language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    return block


def make_project(folder: Path, environment: Path) -> None:
    """What make repro leaves, as far as the section uses it: a tokenizer, a mesh, and .venv, which is `environment`."""
    small_tokenizer().save_pretrained(folder / "artifacts" / "tokenizer")
    (folder / MESH).parent.mkdir(parents=True)
    mesh = trimesh.creation.capsule(height=1.0, radius=0.4).apply_scale(30).apply_translation([7, -80, 900])
    mesh.export(folder / MESH)
    (folder / ".venv").symlink_to(environment)
