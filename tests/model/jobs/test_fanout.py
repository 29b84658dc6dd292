"""Jobs that behave, and jobs that kill, hang and eat memory, on processes of this machine and on a Dask cluster."""

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import scipy.linalg

from model.errors import InputError
from model.jobs import Failure, Limits, run_all

LIMITS = Limits(seconds=600, memory_gb=2)


class Job(NamedTuple):
    number: int
    deed: str
    diary: Path  # a folder with one file per job, one line per time it ran


def work(job: Job) -> int:
    with (job.diary / str(job.number)).open("a") as file:
        file.write("ran\n")
    match job.deed:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:  # in Python, without ever waiting
                pass
        case "eat":
            np.ones(int(1e10), np.uint8)
        case "raise":
            raise ValueError("no")
        case "count threads":
            scipy.linalg.lu_factor(np.eye(500))
            return len(list(Path("/proc/self/task").iterdir()))
    return job.number**2


def jobs_of(deeds: list[str], diary: Path) -> list[Job]:
    diary.mkdir(exist_ok=True)
    return [Job(number, deed, diary) for number, deed in enumerate(deeds)]


def times_run(diary: Path) -> dict[int, int]:
    return {int(path.name): len(path.read_text().split()) for path in diary.iterdir()}


def test_every_job_has_its_result_and_runs_once(tmp_path: Path) -> None:
    jobs = jobs_of(["square"] * 50, tmp_path / "diary")
    results = dict(run_all(work, jobs, limits=LIMITS, markers=tmp_path / "markers"))
    assert results == {job: job.number**2 for job in jobs}
    assert set(times_run(tmp_path / "diary").values()) == {1}
    (folder,) = (tmp_path / "markers").iterdir()
    assert not list(folder.iterdir())


def test_a_worker_has_no_threads_of_its_libraries_whose_memory_would_be_the_job_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    jobs = jobs_of(["count threads"], tmp_path / "diary")
    ((_, threads),) = run_all(work, jobs, limits=LIMITS, markers=tmp_path / "markers")
    assert threads == 3  # that which works, the clock that ends it, and that which watches for the parent's end
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_what_outlives_a_killed_run_has_no_marker_of_the_next(tmp_path: Path) -> None:
    """Its workers may be at work a little longer, and take markers away, on jobs of the same numbers."""
    jobs, folders = jobs_of(["square"], tmp_path / "diary"), set()
    for _ in range(2):
        list(run_all(work, jobs, limits=LIMITS, markers=tmp_path / "markers"))
        folders.update((tmp_path / "markers").iterdir())
    assert len(folders) == 2


def test_jobs_are_taken_as_workers_get_to_them(tmp_path: Path) -> None:
    """A hundred thousand of them are never all in memory."""
    taken = 0

    def endless() -> Iterator[Job]:
        nonlocal taken
        for job in jobs_of(["square"] * 10_000, tmp_path / "diary"):
            taken += 1
            yield job

    results = run_all(work, endless(), limits=LIMITS, markers=tmp_path / "markers")
    for _ in range(5):
        next(results)
    assert taken < 5 + 4 * (os.cpu_count() or 1) + 10
    results.close()  # type: ignore[attr-defined]


def test_jobs_that_kill_or_hang_fail_by_name_and_spare_the_others(tmp_path: Path) -> None:
    deeds = ["square", "die", "square", "hang", *["square"] * 8, "die"]
    jobs = jobs_of(deeds, tmp_path / "diary")
    limits = Limits(seconds=5, memory_gb=2)
    results = dict(run_all(work, jobs, limits=limits, markers=tmp_path / "markers"))
    assert len(results) == len(jobs)
    for job, result in results.items():
        match job.deed:
            case "die":
                assert isinstance(result, Failure)
                assert "died" in result.reason
                assert not result.out_of_time
            case "hang":
                assert isinstance(result, Failure)
                assert "longer than 5 s" in result.reason
                assert result.out_of_time
            case _:
                assert result == job.number**2
    runs = times_run(tmp_path / "diary")
    assert all(runs[job.number] == 2 for job in jobs if job.deed == "die")
    assert max(runs.values()) == 2  # what ran beside one that died began again


def test_memory_beyond_the_limit_is_an_error_in_the_job(tmp_path: Path) -> None:
    jobs = jobs_of(["eat"], tmp_path / "diary")
    with pytest.raises(MemoryError):
        list(run_all(work, jobs, limits=LIMITS, markers=tmp_path / "markers"))


def test_a_limit_of_the_system_below_ours_holds() -> None:
    code = (
        "import resource; from model.jobs.fanout import _begin_worker; kind, half = resource.RLIMIT_DATA, int(1e9); "
        "resource.setrlimit(kind, (half, half)); _begin_worker(2 * half); assert resource.getrlimit(kind)[0] == half"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class EndsWhoeverReadsIt:
    """As a worker ends that can't import what it works with."""

    def __reduce__(self):
        return os._exit, (1,)


def test_processes_that_cannot_begin_are_not_started_for_ever(tmp_path: Path) -> None:
    jobs = [EndsWhoeverReadsIt() for _ in range(3)]
    with pytest.raises(ChildProcessError, match="end before they begin"):
        list(run_all(str, jobs, limits=LIMITS, markers=tmp_path / "markers"))


def test_an_exception_of_the_job_is_raised(tmp_path: Path) -> None:
    jobs = jobs_of(["raise"], tmp_path / "diary")
    with pytest.raises(ValueError, match="no"):
        list(run_all(work, jobs, limits=LIMITS, markers=tmp_path / "markers"))


def test_no_scheduler_at_the_address_is_said(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
            list(run_all(work, [], limits=LIMITS, markers=tmp_path, dask_scheduler="tcp://127.0.0.1:9"))
