"""What a file is, its content says; what lies there in a mesh's place is named."""

import gzip
import os
import socket
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model.errors import InputError
from model.meshes import ChangedError, load_mesh
from tests.model.meshes.conftest import Load
from tests.model.meshes.gltf_writer import box_writer
from tests.model.meshes.ply_writer import FORMATS, ply
from tests.model.meshes.test_obj import PLAIN as OBJ
from tests.model.meshes.test_off import off
from tests.model.meshes.test_stl import PLAIN as STL
from tests.model.meshes.test_stl import binary
from tests.model.meshes.truths import BOX_TRUTH, assert_truth

CONTENTS = {
    ".obj": [OBJ.encode()],
    ".stl": [STL.encode(), binary(), binary(header=b"solid")],
    ".ply": [ply(kind) for kind in FORMATS],
    ".off": [off().encode(), b"# made by a test\n" + off().encode()],
    ".glb": [box_writer().glb()],
    ".gltf": [box_writer().gltf()],
}


@pytest.mark.parametrize("suffix", [*CONTENTS, ".OBJ", ".Stl", ".txt", ""])
@pytest.mark.parametrize("kind", CONTENTS)
def test_the_content_decides_and_not_the_suffix(load: Load, kind: str, suffix: str) -> None:
    for content in CONTENTS[kind]:
        mesh = load(content, f"box{suffix}")
        assert_truth(mesh, BOX_TRUTH)
        named = f"named {suffix.lower() or 'without a suffix'} but holds {kind[1:].upper()}: 1"
        assert mesh.notes == (() if suffix.lower() == kind else (named,))


def zipped(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("box.obj", OBJ)
    return path.read_bytes()


STAND_INS = {
    "Git LFS pointer.*git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "web page.*download": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
    "web page": b"\n  <html lang='en'><body>Sign in</body></html>",
    "metadata of macOS": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(200),
    "compressed; unpack it": gzip.compress(OBJ.encode()),
    "FBX": b"Kaydara FBX Binary  \0\x1a\0" + bytes(100),
    "XML, such as COLLADA": b"<?xml version='1.0'?><COLLADA/>",
    "Blender": b"BLENDER-v300" + bytes(100),
    "VRML": b"#VRML V2.0 utf8\n",
    "STEP": b"ISO-10303-21;\nHEADER;\n",
    "VTK": b"# vtk DataFile Version 3.0\n",
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "PDF": b"%PDF-1.7\n",
    "UTF-16": OBJ.encode("utf-16"),
    "nothing but zeros": bytes(10_000),
    "empty": b"",
}


@pytest.mark.parametrize("suffix", [".obj", ".stl", ".ply", ".glb", ".gltf", ".off"])
@pytest.mark.parametrize("what", STAND_INS)
def test_stand_ins_are_named(load: Load, what: str, suffix: str) -> None:
    with pytest.raises(InputError, match=what) as error:
        load(STAND_INS[what], f"box{suffix}")
    assert str(error.value).count(";") == (2 if "empty" in what else 1)  # what it is, and what to do


def test_archives_are_named(load: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ZIP archive"):
        load(zipped(tmp_path / "box.zip"), "box.obj")


@pytest.mark.parametrize("suffix", [".stl", ".ply", ".glb", ".gltf", ".off", ".obj"])
def test_prose_is_no_mesh(load: Load, suffix: str) -> None:
    for text in ("Dear reader,\nthis is no mesh.\n", "vector files\nfor all\nv is a letter\nf is too\n", "\1\2\3" * 50):
        with pytest.raises(InputError):
            load(text, f"prose{suffix}")


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's name has at most 107 bytes
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(
    ("make", "what"), [(make_pipe, "a named pipe"), (make_socket, "a socket"), (Path.mkdir, "a folder")]
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: Callable[[Path], None], what: str) -> None:
    path = tmp_path / "box.stl"
    make(path)
    with pytest.raises(InputError, match=f"it is {what}.*, no ordinary file"):
        load_mesh(path)


def test_a_file_that_is_not_there_is_the_callers_affair(tmp_path: Path) -> None:
    (tmp_path / "link.stl").symlink_to(tmp_path / "gone.stl")
    for name in ("gone.stl", "link.stl"):
        with pytest.raises(FileNotFoundError):
            load_mesh(tmp_path / name)


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer goes on between two looks at the file; a real one, in another thread."""
    path = tmp_path / "box.stl"
    path.write_bytes(binary())
    read_bytes = Path.read_bytes

    def read_while_it_grows(self: Path) -> bytes:
        content = read_bytes(self)
        writer = threading.Thread(target=lambda: self.write_bytes(content + content[84:134]))
        writer.start()
        writer.join()
        return content

    monkeypatch.setattr(Path, "read_bytes", read_while_it_grows)
    with pytest.raises(ChangedError, match="changed while it was read"):
        load_mesh(path)
