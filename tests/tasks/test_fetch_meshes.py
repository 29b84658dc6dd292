import hashlib
from pathlib import Path
from zipfile import ZipFile

import pytest

from model.errors import InputError
from tasks.fetch_meshes import check_hash, download_wheel, extract_meshes

PATTERN = "robots/assets/meshes/**/*.stl"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "robots-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr("robots/assets/meshes/arm/hand.stl", b"hand")
        archive.writestr("robots/assets/meshes/arm/left/finger.stl", b"finger")
        archive.writestr("robots/assets/meshes/base.stl", b"base")
        archive.writestr("robots/assets/meshes/arm/skin.png", b"picture")
        archive.writestr("robots/other/meshes/arm/hand.stl", b"other")
        archive.writestr("robots-1.0.dist-info/licenses/LICENSE", b"MIT")
    return path


def test_members_of_the_pattern_keep_their_subfolders(wheel: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert extract_meshes(wheel, PATTERN, out) == 3
    written = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert written == {
        "arm/hand.stl": b"hand",
        "arm/left/finger.stl": b"finger",
        "base.stl": b"base",
        "LICENSE": b"MIT",
    }


def test_a_pattern_that_matches_nothing_is_named(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"robots/\*\.obj"):
        extract_meshes(wheel, "robots/*.obj", tmp_path / "out")


def test_a_file_that_would_land_outside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr("robots/../../../escaped.stl", b"x")
    with pytest.raises(InputError, match="outside"):
        extract_meshes(path, "robots/**/*.stl", tmp_path / "out")
    assert not list(tmp_path.rglob("escaped.stl"))


def test_what_is_no_zip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.whl"
    path.write_text("not a zip file")
    with pytest.raises(InputError, match="unzipped"):
        extract_meshes(path, PATTERN, tmp_path / "out")


def test_only_the_expected_hash_passes(wheel: Path) -> None:
    check_hash(wheel, hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(InputError, match=f"expected fetch_meshes.sha256 {'0' * 64}"):
        check_hash(wheel, "0" * 64)


def test_a_failed_download_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"set voxelize\.meshes to a folder of your own"):
        download_wheel("not a requirement", tmp_path)
