"""The library as others install it: its wheel, and an environment with the wheel and its dependencies alone."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PathDistribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# The extra with the build of spconv that this checkout's environment has.
SPCONV = "cuda" if any(distributions(name="spconv-cu126")) else "cpu"


def pip(*arguments: str | Path) -> None:
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], ROOT)


def copy_sources(folder: Path) -> Path:
    """What a wheel is made from, in a place where setuptools may write and no earlier build has left anything."""
    for name in ("flows", "model", "pretrained", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_wheel(folder: Path) -> Path:
    """Without a network, by the setuptools that is here."""
    sources = copy_sources(folder / "sources")
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, sources)
    (wheel,) = folder.glob("*.whl")
    return wheel


def metadata(wheel: Path) -> Distribution:
    (information,) = (entry for entry in zipfile.Path(wheel).iterdir() if entry.name.endswith(".dist-info"))
    return PathDistribution(information)  # type: ignore[arg-type]


def required(of: Distribution, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """What this distribution requires on this machine with these extras."""
    for requirement in map(Requirement, of.requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def closure(of: Distribution, extras: Iterable[str] = ()) -> list[Distribution]:
    """All that is installed along with it, as this checkout's environment has it."""
    found: dict[str, Distribution] = {}
    seen = set()
    waiting = list(required(of, extras))
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        found[name] = distribution(name)
        assert requirement.specifier.contains(found[name].version, prereleases=True), requirement
        waiting += required(found[name], requirement.extras)
    return list(found.values())


def make_environment(folder: Path, wheel: Path, *extras: str) -> Path:
    """Its Python. The dependencies are links to those of this checkout's environment."""
    venv.create(folder, symlinks=True)
    here = Path(sysconfig.get_path("purelib"))
    there = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    owners = Counter(name for other in distributions() for name in {file.parts[0] for file in other.files or ()})
    for needed in closure(metadata(wheel), extras):
        for file in needed.files or ():
            # A folder in one piece, unless others than this distribution have something in it.
            name = Path(file.parts[0]) if owners[file.parts[0]] == 1 else Path(file)
            if ".." in name.parts or (there / name).is_symlink() or not (here / name).exists():
                continue
            (there / name).parent.mkdir(parents=True, exist_ok=True)
            (there / name).symlink_to(here / name)
    python = folder / "bin" / "python"
    pip("--python", python, "install", "--no-index", "--no-deps", wheel)
    return python


def run(line: list[str | Path], folder: Path) -> str:
    """What a command prints that is run in a folder, with nothing of this checkout in its environment."""
    environment = {name: value for name, value in os.environ.items() if not re.match("PYTHON|VIRTUAL_ENV", name)}
    environment |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
