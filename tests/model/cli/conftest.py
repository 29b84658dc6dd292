"""shape-tokenizer as a shell calls it: a folder to stand in, with a tokenizer and real files."""

from pathlib import Path

import pytest
import trimesh

from model.cli import main
from tests.shapes import ring_and_box
from tests.small_tokenizer import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the tokenizer where the pipeline puts it, named in the environment."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "tokenizer").symlink_to(tokenizer_folder)
    monkeypatch.setenv("SHAPE_TOKENIZER", "artifacts/tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code if isinstance(end.value.code, int) else 1


def shapes() -> dict[str, trimesh.Trimesh]:
    """By file name; none in the cube's own frame."""
    ring = ring_and_box().apply_scale(3.0)
    return {
        "ring.ply": ring.apply_translation([10, 0, -4]),
        "deep/can.obj": trimesh.creation.cylinder(radius=1.0, height=3.0),
        "deep/deeper/ball.stl": trimesh.creation.icosphere(subdivisions=3, radius=0.01),
        "box.glb": trimesh.creation.box((4.0, 3.0, 2.0)),
    }


def write_shapes(folder: Path) -> None:
    for name, mesh in shapes().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mesh.export(folder / name)
