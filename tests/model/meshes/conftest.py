"""What the tests of readers share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.meshes import Mesh, load_mesh

Load = Callable[..., Mesh]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Writes a file and reads it."""

    def write_and_load(content: bytes | str, name: str) -> Mesh:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return load_mesh(path)

    return write_and_load
