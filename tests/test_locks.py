"""The lock files are made with one Python, and `make setup` installs them with every one that it accepts."""

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PINNED = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)


def locked() -> dict[str, str]:
    """What the lock files for a machine without a GPU name: the version of each."""
    text = (ROOT / "requirements-cpu.lock").read_text() + (ROOT / "requirements-torch.lock").read_text()
    return {canonicalize_name(name): version for name, version in PINNED.findall(text)}


@pytest.mark.parametrize("python", ["3.11.0", "3.11.15", "3.12.0", "3.12.12", "3.13.0", "3.13.9"])
def test_whatever_a_locked_package_needs_on_this_python_is_locked(python: str):
    """By the markers of the installed ones' own metadata: pip refuses a package without a hash.

    But for torch, which is installed without hashes and brings what its build needs.
    """
    environment = {"python_version": python.rpartition(".")[0], "python_full_version": python, "extra": ""}
    versions = locked()
    installed = {canonicalize_name(found.name): found for found in distributions()}
    missing = []
    for name in versions.keys() & installed.keys() - {"torch"}:
        for requirement in map(Requirement, installed[name].requires or []):
            if requirement.marker is None or requirement.marker.evaluate(environment):
                version = versions.get(canonicalize_name(requirement.name))
                if version is None or not requirement.specifier.contains(version, prereleases=True):
                    missing.append(f"{name} needs {requirement}")
    assert missing == []
