"""Mesh files of a folder: their names, and what their content depends on."""

import hashlib
import os
from pathlib import Path

import pytest

from model.errors import InputError
from model.meshes import find_meshes, irregular_files, memory_to_load, sha256_of
from tests.model.meshes.gltf_writer import box_writer


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_a_name_keeps_its_suffix_where_another_needs_that(tmp_path: Path) -> None:
    touch(tmp_path, "chair.stl", "chair.obj", "chair.obj.ply", "table.off", "deep/chair.gltf", "deep/b.c.glb", "b.txt")
    assert {name: path.name for name, path in find_meshes(tmp_path).items()} == {
        "chair.stl": "chair.stl",
        "chair.obj": "chair.obj",
        "chair.obj.ply": "chair.obj.ply",
        "table": "table.off",
        "deep/chair": "chair.gltf",
        "deep/b.c": "b.c.glb",
    }


@pytest.mark.parametrize(
    "names",
    [
        ("a.obj", "a.obj.ply"),
        ("a.obj", "a.obj.obj"),
        ("a.obj", "a.OBJ"),
        ("a.stl", "a.obj", "a.stl.obj", "a.stl.stl", "a.stl.obj.ply"),
        ("a.b.obj", "a.b", "a.stl", "a.b.stl.ply", "a.b.stl"),
    ],
)
def test_every_file_has_a_name_of_its_own(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    found = find_meshes(tmp_path)
    assert len(found) == len([name for name in names if name != "a.b"])
    assert all(path.name in (name, f"{name}{path.suffix}") for name, path in found.items())


def test_what_macos_puts_beside_others_is_no_mesh(tmp_path: Path) -> None:
    touch(tmp_path, "chair.stl", "._chair.stl", ".hidden.stl")
    assert set(find_meshes(tmp_path)) == {"chair", ".hidden"}


def test_names_that_read_alike_as_text_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"a\xff.stl"), "a\\udcff.stl")
    with pytest.raises(InputError, match="rename one"):
        find_meshes(tmp_path)


def test_pipes_and_links_to_nothing_are_found_wherever_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "chair.stl", "deep/readme.txt")
    os.mkfifo(tmp_path / "deep" / "pipe")
    (tmp_path / "gone.stl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    found = irregular_files(tmp_path)
    assert [path.name for path in found] == ["pipe", "gone.stl"]
    reasons = list(found.values())
    assert "named pipe" in reasons[0]
    assert "can't be opened" in reasons[1]


def test_the_hash_is_that_of_all_that_is_read(tmp_path: Path) -> None:
    stl, gltf, data = tmp_path / "a.stl", tmp_path / "a.gltf", tmp_path / "a.bin"
    stl.write_bytes(b"anything")
    assert sha256_of(stl) == hashlib.sha256(b"anything").hexdigest()
    writer = box_writer()
    gltf.write_bytes(writer.gltf("a.bin"))
    missing = sha256_of(gltf)
    data.write_bytes(bytes(writer.data))
    whole = sha256_of(gltf)
    data.write_bytes(bytes(writer.data).replace(b"\1", b"\2", 1))
    assert len({missing, whole, sha256_of(gltf)}) == 3
    writer.document["buffers"] = [{"byteLength": len(writer.data), "uri": "a.bin"}]
    glb = tmp_path / "a.glb"
    glb.write_bytes(writer.glb())
    before = sha256_of(glb)
    data.write_bytes(bytes(writer.data))
    assert sha256_of(glb) != before


def test_memory_counts_what_is_named_and_what_is_compressed(tmp_path: Path) -> None:
    writer = box_writer()
    (tmp_path / "a.gltf").write_bytes(writer.gltf("a.bin"))
    alone = memory_to_load(tmp_path / "a.gltf")
    (tmp_path / "a.bin").write_bytes(bytes(10_000))
    assert memory_to_load(tmp_path / "a.gltf") >= alone + 10 * 10_000
    (tmp_path / "a.glb").write_bytes(writer.glb())
    plain = memory_to_load(tmp_path / "a.glb")
    writer.document["extensionsUsed"] = ["KHR_draco_mesh_compression"]
    (tmp_path / "a.glb").write_bytes(writer.glb())
    assert memory_to_load(tmp_path / "a.glb") > 5 * plain
