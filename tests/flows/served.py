"""A checkout whose `make serve` runs: the real flow on a real server and worker, with stand-ins for the stages."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.local_server import ON_ITS_OWN
from tests.dvc_project import ROOT, write_project
from tests.processes import free_port
from tests.waiting import SECONDS, wait_until

PATIENT = dict.fromkeys(
    ("PREFECT_API_REQUEST_TIMEOUT", "PREFECT_SERVER_DATABASE_TIMEOUT", "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT"),
    str(SECONDS),
)
QUICK_SCHEDULER = {"PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2"}  # in place of 60
NO_WAY_OUT = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}  # where nobody listens


@dataclass(frozen=True)
class Served:
    root: Path
    process: "subprocess.Popen[bytes]"
    page: str
    secret: str

    @property
    def api(self) -> str:
        return f"{self.page}/api"

    def log(self) -> str:
        return (self.root / "serve.log").read_text()

    def shell(self, command: str) -> "subprocess.CompletedProcess[str]":
        """A command in another terminal, in the root of the checkout."""
        environment = os.environ | {"NO_PROXY": ON_ITS_OWN} | PATIENT
        return subprocess.run(
            ["sh", "-c", command], cwd=self.root, env=environment, check=False, capture_output=True, text=True
        )


def write_checkout(root: Path) -> int:
    """The project's own code, with stand-ins for the stages; its server's port."""
    for package in ("flows", "model", "tasks"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (".gitignore", "prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, root / file)
    write_project(root)
    port = free_port()
    settings = root / "pyproject.toml"
    settings.write_text(settings.read_text().replace("127.0.0.1:4200", f"127.0.0.1:{port}"))
    binaries = root / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "prefect", "dvc"):
        words = sys.executable if name == "python" else f"{sys.executable} -m {name}"
        (binaries / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (binaries / name).chmod(0o755)
    for command in (["git"], [sys.executable, "-m", "dvc"]):
        subprocess.run([*command, "init", "--quiet"], cwd=root, check=True)
    return port


def start(root: Path) -> "subprocess.Popen[bytes]":
    """`make serve` as a background job of a shell that ignores SIGINT, behind a proxy that leads nowhere."""
    with (root / "serve.log").open("w") as log:
        return subprocess.Popen(
            ["sh", "-c", f"trap '' INT; exec {sys.executable} -m flows.serve"],
            cwd=root,
            env=os.environ | NO_WAY_OUT | PATIENT | QUICK_SCHEDULER,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@contextmanager
def serving(root: Path) -> Iterator[Served]:
    """Until the block ends; then it is killed, and what it started must be gone soon after."""
    port = write_checkout(root)
    process = start(root)
    try:
        log = root / "serve.log"
        wait_until(lambda: "serving on" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        settings = tomllib.loads((root / "prefect.toml").read_text())
        yield Served(root, process, f"http://127.0.0.1:{port}", settings["api"]["auth_string"])
    finally:
        started = descendants(process)
        process.kill()
        process.wait()
    wait_until(lambda: not any(child.is_running() for child in started))


def descendants(process: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
