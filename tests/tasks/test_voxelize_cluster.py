"""The stage on a Dask cluster, and the stage that is killed: what was finished stays, nothing is done twice."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tasks import voxelize as stage
from tasks.run import paths
from tests.tasks.test_voxelize import contents, in_scratch, settings_for, write_balls
from tests.waiting import SECONDS, wait_until

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal
from tasks import voxelize
from tasks.voxelization import jobs
run_all = jobs.run_all
def killed_at_the_sixth(*arguments, **options):
    for number, result in enumerate(run_all(*arguments, **options)):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield result
jobs.run_all = killed_at_the_sixth
voxelize.run_stage("voxelize", voxelize.voxelize_meshes)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def scheduler() -> Iterator[str]:
    """Two workers, each a process of one thread, and their scheduler, each started by its command."""
    pytest.importorskip("distributed")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def start(*command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]],
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    file = Path("scheduler.json").absolute()
    started = [
        start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", f"--scheduler-file={file}")
    ]
    started += [
        start("dask_worker", f"--scheduler-file={file}", "--nworkers", "2", "--nthreads", "1", "--no-dashboard")
    ]
    from distributed import Client

    with Client(scheduler_file=str(file), timeout=SECONDS, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=SECONDS)
        address = client.scheduler.address
    yield address
    for process in reversed(started):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_a_cluster_writes_the_same_bytes_and_outlives_the_death_of_a_worker(here: Path, scheduler: str) -> None:
    write_balls(here / "meshes", num=24)
    stage.voxelize_meshes(settings_for())
    alone = contents(paths.SDF)
    shutil.rmtree(paths.VOXELIZE_SCRATCH)

    victims = _pids(scheduler)
    assert len(victims) == 2

    def kill_one_midway() -> None:
        wait_until(lambda: len(in_scratch()) >= 4)
        os.kill(victims[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one_midway, daemon=True)
    killer.start()
    stage.voxelize_meshes(settings_for(dask_scheduler=scheduler))
    killer.join()
    assert contents(paths.SDF) == alone
    assert set(_pids(scheduler)) != set(victims)
    assert pd.read_parquet(paths.SDF / "rejects.parquet").empty


def _pids(scheduler: str) -> list[int]:
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_after_a_kill_nothing_is_voxelized_twice(here: Path) -> None:
    write_balls(here / "meshes", num=40)
    settings = settings_for()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    finished = in_scratch()  # its workers may be at work a little longer, on few that they had
    assert 5 <= len(finished) < 40
    stage.voxelize_meshes(settings)
    assert finished.items() <= in_scratch().items()
    assert len(in_scratch()) == 40
