"""A checkout to run flows in: the real graph with stand-ins for the stages, under git, after its first dvc repro."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, temporary_settings

from tests.dvc_project import write_project
from tests.flows.served import Served, serving
from tests.sharing import made_by_the_first
from tests.waiting import SECONDS


def run(*command: str) -> str:
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(root: Path) -> None:
        write_project(root)
        (root / ".gitignore").write_text("/artifacts/\n/data/\n__pycache__/\n")
        with pytest.MonkeyPatch.context() as here:
            enter(here, root)
            run("git", "init", "--quiet", "--initial-branch", "main")
            run("git", "config", "user.name", "nobody")
            run("git", "config", "user.email", "nobody@example.org")
            Repo.init().close()
            repro()
            run("git", "add", "--all")
            run("git", "commit", "--quiet", "--message", "a finished run")

    return made_by_the_first(tmp_path_factory, "finished", make)


@pytest.fixture
def checkout(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Its copy, entered."""
    root = shutil.copytree(finished, tmp_path / "checkout", symlinks=True)
    enter(monkeypatch, root)
    return root


def repro(*targets: str) -> None:
    """As `dvc repro`, in this process: a new one takes two seconds to begin."""
    with Repo() as repo:
        repo.reproduce(targets or ["dvc.yaml"])


def outdated() -> dict[str, object]:
    """As `dvc status dvc.yaml`: what is not as dvc.lock has it."""
    with Repo() as repo:
        return dict(repo.status(targets=["dvc.yaml"]))


def enter(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


def changes() -> str:
    """What git finds changed."""
    return run("git", "status", "--porcelain")


def params_text() -> str:
    return Path("params.yaml").read_text()


def replace_stage(name: str, program: str) -> None:
    """Let another program stand for a stage, as a committed change."""
    Path(f"tasks/{name}.py").write_text(program)
    run("git", "commit", "--quiet", "--all", "--message", f"another {name}")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`make serve`, once for all tests, as it takes a while to start."""
    with serving(tmp_path_factory.mktemp("served") / "checkout") as running:
        yield running


@pytest.fixture
def connected(served: Served) -> Iterator[Served]:
    """What uses Prefect in this process uses that server."""
    settings = {PREFECT_API_URL: served.api, PREFECT_API_AUTH_STRING: served.secret}
    with temporary_settings(settings | {PREFECT_API_REQUEST_TIMEOUT: SECONDS}):
        yield served
        APILogHandler().flush()
