import hashlib
import io
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from pydantic import ValidationError

from model.errors import InputError
from tasks.fetch_meshes import download_wheel, extract_meshes
from tasks.run.settings import FetchMeshes
from tests.faults import full, small_disk

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


def test_meshes_of_one_name_and_several_licences_all_stay(tmp_path: Path) -> None:
    wheel = tmp_path / "robots-1.0-py3-none-any.whl"
    members = ["arms/left/a.stl", "legs/left/a.stl", "a.stl"]
    licences = ["LICENSE-MIT", "LICENCE.CC0"]
    with ZipFile(wheel, "w") as archive:
        for name in ["arms/", "arms/left/", *members, *(f"robots-1.0.dist-info/{name}" for name in licences)]:
            archive.writestr(name, name)
    assert extract_meshes(wheel, "**/*.stl", tmp_path / "all") == 3
    assert extract_meshes(wheel, "arms/**/*", tmp_path / "arms") == 1
    for folder, meshes in [("all", members), ("arms", ["left/a.stl"])]:
        found = [path.relative_to(tmp_path / folder).as_posix() for path in (tmp_path / folder).rglob("*.*")]
        assert sorted(found) == sorted([*meshes, "LICENCE.CC0"])
        assert (tmp_path / folder / "LICENSE-MIT").is_file()


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


# --- pip ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


def put_wheel(index: Path) -> str:
    """A package that pip accepts; its sha256."""
    path = index / "robots-1.0-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        archive.writestr("robots-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: robots\nVersion: 1.0\n")
        archive.writestr("robots-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_expected_hash_passes(index: Path, downloads: Path):
    sha256 = put_wheel(index)
    with pytest.raises(
        InputError, match=rf"^sha256 of robots==1.0 is {sha256}; expected fetch_meshes.sha256 {'0' * 64}"
    ):
        download_wheel("robots==1.0", "0" * 64, downloads)
    assert download_wheel("robots==1.0", sha256, downloads) == downloads / "robots-1.0-py3-none-any.whl"


def test_what_would_be_built_is_not_even_unpacked(index: Path, downloads: Path):
    source = index / "robots-1.0.tar.gz"
    built = index / "built"
    with tarfile.open(source, "w:gz") as archive:
        setup = f"open({str(built)!r}, 'w')".encode()
        member = tarfile.TarInfo("robots-1.0/setup.py")
        member.size = len(setup)
        archive.addfile(member, io.BytesIO(setup))
    with pytest.raises(InputError, match=r"pip can't download robots==1.0 .*set voxelize\.meshes to a folder"):
        download_wheel("robots==1.0", hashlib.sha256(source.read_bytes()).hexdigest(), downloads)
    assert not built.exists()


def test_a_full_disk_is_no_fault_of_the_package(index: Path, downloads: Path):
    sha256 = put_wheel(index)
    with small_disk(downloads):
        room = 4096 if downloads.is_mount() else 64
        with full(downloads, room=room), pytest.raises(OSError, match=r"No space left on device|File too large"):
            download_wheel("robots==1.0", sha256, downloads)


@pytest.mark.parametrize(
    "wheel",
    ["robots", "robots>=1", "robots==1.*", "-rrobots==1", "./robots==1", "robots @ file:///tmp/x", "robots==1 --pre",
     "robots==1\n-r other", "robots==1;python_version>'3'", "robots[extra]==1", ""],
)  # fmt: skip
def test_what_is_not_one_version_of_one_package_is_refused(wheel: str):
    with pytest.raises(ValidationError, match=r"expected one version of one package, as in metaworld==3.1.1"):
        FetchMeshes(wheel=wheel, sha256="0" * 64, pattern="*")


@pytest.mark.parametrize("wheel", ["metaworld==3.1.1", "Robot_arm.x-y==1!2.0rc1.post2+cpu"])
def test_what_is_one_is_not(wheel: str):
    assert FetchMeshes(wheel=wheel, sha256="0" * 64, pattern="*").wheel == wheel
