"""Independent jobs on many processes, of this machine or of a Dask cluster, whatever becomes of the processes.

A job may kill its process or never end. Before it starts it leaves a marker on disk, which it takes away at the end: so
the next attempt knows what happened to the last one, wherever it ran.
"""

import errno
import faulthandler
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, islice
from multiprocessing import connection
from pathlib import Path
from shutil import rmtree
from threading import Thread
from typing import Generic, NamedTuple, TypeVar
from uuid import uuid4

from ..errors import InputError, skip_last_collection

GB = 1e9
_MAX_ATTEMPTS = 2  # the first may have died of what another job did
_JOBS_A_WORKER = 4  # under way or waiting there for their turn
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # NumPy's and SciPy's take 40 MB a core, each
_STARTED = "started"
_OUT_OF_TIME = "Timeout"  # what faulthandler writes before it ends the process

Job = TypeVar("Job", bound=Hashable)
Result = TypeVar("Result")


class Failure(NamedTuple):
    """Why a job has no result."""

    reason: str
    out_of_time: bool = False


class Limits(NamedTuple):
    """Of one job."""

    seconds: float
    memory_gb: float  # not enforced on a Dask cluster, whose workers have limits of their own


class Workers(NamedTuple):
    """Where jobs run."""

    executor: Executor
    num_workers: int
    deaths: tuple[type[BaseException], ...]  # what a future raises when its process died


class Marked(NamedTuple, Generic[Job]):
    job: Job
    marker: Path  # absolute


def run_all(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    limits: Limits,
    markers: Path,
    dask_scheduler: str | None = None,
) -> Iterator[tuple[Job, Result | Failure]]:
    """The result of every job, in the order in which they end; only a few are under way at a time.

    `work` must be importable. Where a process dies, the jobs under way in it start again, those that may have killed
    it alone; a job that goes on killing has a Failure for a result, as has one that takes too long. Raises InputError
    where `dask_scheduler`, the address of one, can't be used, ChildProcessError where no process can begin a job.
    """
    rmtree(markers, ignore_errors=True)
    here = markers.absolute() / uuid4().hex  # workers of a run that was killed may be at work a little longer
    here.mkdir(parents=True)
    fresh = (Marked(job, here / str(number)) for number, job in enumerate(jobs))
    attempt = partial(_attempt, work, limits.seconds)

    def workers(at_most: int | None = None) -> AbstractContextManager[Workers]:
        return _dask_workers(dask_scheduler) if dask_scheduler else _own_workers(limits, at_most)

    unfinished: list[Marked[Job]] = []
    in_vain = 0  # how often in a row processes died and none had begun a job
    while True:
        lost: list[Marked[Job]] = []
        in_vain += 1
        with workers() as place:
            for result in _run(place, attempt, chain(unfinished, fresh), lost):
                in_vain = 0
                yield result
        suspects = [item for item in lost if item.marker.exists()]
        unfinished = [item for item in lost if not item.marker.exists()]
        for suspect in suspects:
            again, rounds = [suspect], 0
            while again:
                if rounds > _MAX_ATTEMPTS:
                    raise _no_process_begins()
                once_more, again, rounds = again, [], rounds + 1
                with workers(at_most=1) as place:
                    yield from _run(place, attempt, iter(once_more), again)
        if not lost:
            return
        if in_vain >= _MAX_ATTEMPTS and not suspects:
            raise _no_process_begins()


def _no_process_begins() -> ChildProcessError:
    return ChildProcessError(errno.ECHILD, "processes end before they begin to work; what they said is above")


def _run(
    place: Workers,
    attempt: Callable[[Marked[Job]], Result | Failure],
    jobs: Iterator[Marked[Job]],
    lost: list[Marked[Job]],
) -> Iterator[tuple[Job, Result | Failure]]:
    """Results as they come. When a process dies, no new job starts, and `lost` has those that still have no result."""
    under_way: dict[Future[Result | Failure], Marked[Job]] = {}
    while True:
        room = 0 if lost else _JOBS_A_WORKER * place.num_workers - len(under_way)
        for item in islice(jobs, max(room, 0)):
            try:
                with _one_thread_each():
                    under_way[place.executor.submit(attempt, item)] = item
            except place.deaths:
                lost.append(item)
        if not under_way:
            break
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            item = under_way.pop(future)
            try:
                result = future.result()
            except place.deaths:
                lost.append(item)
            else:
                yield item.job, result


def _attempt(work: Callable[[Job], Result], seconds: float, item: Marked[Job]) -> Result | Failure:
    """Runs in the worker. The clock that ends the process needs no cooperation, neither of Python nor of what hangs."""
    history = item.marker.read_text() if item.marker.exists() else ""
    if _OUT_OF_TIME in history:
        return Failure(f"it took longer than {seconds:g} s", out_of_time=True)
    if history.count(_STARTED) >= _MAX_ATTEMPTS:
        return Failure("the process that worked on it died, perhaps of too little memory")
    with item.marker.open("a") as marker:
        marker.write(f"{_STARTED}\n")
        marker.flush()
        faulthandler.dump_traceback_later(seconds, exit=True, file=marker)
        try:
            return work(item.job)
        finally:
            faulthandler.cancel_dump_traceback_later()
            item.marker.unlink()


@contextmanager
def _own_workers(limits: Limits, at_most: int | None) -> Iterator[Workers]:
    """Processes of this machine, one for every core that there is memory for."""
    num_cores = len(os.sched_getaffinity(0))
    num_workers = max(1, min(at_most or num_cores, num_cores, int(free_memory() / (limits.memory_gb * GB))))
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(int(limits.memory_gb * GB),),
    )
    try:
        yield Workers(pool, num_workers, (BrokenProcessPool,))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """For processes that start here: their libraries read it when they load, which is before any job.

    Threads for 32 cores would take 2.5 GB of the memory that a job may have.
    """
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _dask_workers(scheduler: str) -> Iterator[Workers]:
    """Those of a Dask cluster, which should have one thread each: whatever kills a worker then kills one job."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError(
            f"{scheduler} is to run jobs but Dask is not installed; pip install '.[dask]', or name no scheduler"
        ) from None
    try:
        client = Client(scheduler, timeout=10, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler} ({error}); start one, or correct it") from error
    with client:
        num_workers = sum(client.nthreads().values())
        if not num_workers:
            raise InputError(f"the Dask scheduler at {scheduler} has no workers; start some")
        yield Workers(client.get_executor(pure=False), num_workers, (KilledWorker,))


def _begin_worker(max_bytes: int) -> None:
    """Ctrl-C is the parent's to handle; no worker outlives a parent that was killed; none takes all memory."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    skip_last_collection()
    _, allowed = resource.getrlimit(resource.RLIMIT_DATA)
    most = max_bytes if allowed == resource.RLIM_INFINITY else min(max_bytes, allowed)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    parent = multiprocessing.parent_process()
    if parent is not None:
        Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def free_memory() -> float:
    """Bytes that this machine, or the container it is, can give out."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = float(lines["MemAvailable"].split()[0]) * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    if text == "max":
        return free
    used = float(limit.with_name("memory.current").read_text())
    statistics = dict(line.split() for line in limit.with_name("memory.stat").read_text().splitlines())
    return min(free, float(text) - used + float(statistics["inactive_file"]))  # of files, given back on demand
