"""What holds for every test."""

import gc
import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from model.errors import hear_interrupts
from tests.processes import fork_server
from tests.sharing import made_by_the_first
from tests.wheel import SPCONV, build_wheel, make_environment

settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # the machine may be: how long an example takes says nothing
hear_interrupts()  # what tests start is told to stop by SIGINT, also where the caller of pytest ignores it


def pytest_collection_finish() -> None:
    """What the imports made stays: a search for cycles in it takes half a second, and pytest makes five at the end."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def dvc_by_itself(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings of the user's own; no reports and no looks for a newer version, each a process beside the test."""
    folder = tmp_path_factory.mktemp("dvc")
    (folder / "config").write_text("[core]\nanalytics = false\ncheck_update = false\n")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("DVC_GLOBAL_CONFIG_DIR", str(folder))
        yield


@pytest.fixture
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process that voxelizes takes two seconds to start: one where their number does not matter."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does not matter how they start either, they have begun already: see fork_server."""
    context, server = multiprocessing.get_context, fork_server()
    monkeypatch.setattr("multiprocessing.get_context", lambda how=None: server if how == "spawn" else context(how))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's, built from this checkout."""
    (wheel,) = made_by_the_first(tmp_path_factory, "wheel", build_wheel).glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A folder such as python -m venv makes, with the wheel, the build of spconv that is here, and what they need."""
    return made_by_the_first(tmp_path_factory, "environment", lambda folder: make_environment(folder, wheel, SPCONV))
