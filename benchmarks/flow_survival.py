"""What becomes of a run that is cancelled or killed, on a real server and worker, with the real stage 2?

    .venv/bin/python -m benchmarks.flow_survival [--cases CASE ...] [--json FILE]         (after make repro)

Takes minutes: each case starts stage 2 with other parameters, strikes once a step is saved, waits for what becomes of
it, and lets the next run finish. Server and worker are the script's own, on a port of their own, with a secret of their
own; the checkout is left as it was.
"""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling
from tqdm import tqdm

from benchmarks import command, command_line, processor, write_json
from tasks.run import paths

PORT = 4217
URL = f"http://127.0.0.1:{PORT}/api"
SECRET = f"survival:{secrets.token_urlsafe(32)}"
PATIENCE = 300.0  # seconds until any wait is given up
LOCK = paths.RESUME / "stage2.lock"


class Prefect:
    """A server and a worker of our own, and the runs on them."""

    def __init__(self, home: Path, client: SyncPrefectClient):
        self.environment = environment_of(home)
        self.client = client
        self.worker = self.start("worker", "start", "--pool", "train-vqvae")

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def restart_worker(self) -> None:
        self.worker = self.start("worker", "start", "--pool", "train-vqvae")

    def run(self, **parameters: Any) -> FlowRun:
        deployment = self.client.read_deployment_by_name("train-vqvae/default")
        return self.client.create_flow_run_from_deployment(deployment.id, parameters=parameters)

    def state(self, run: FlowRun) -> str:
        state = self.client.read_flow_run(run.id).state
        return (state and state.name) or ""

    def until(self, run: FlowRun, *names: str) -> str:
        wait_until(lambda: self.state(run) in names)
        return self.state(run)

    def ended(self, run: FlowRun) -> str:
        wait_until(lambda: bool((state := self.client.read_flow_run(run.id).state) and state.is_final()))
        return self.state(run)

    def resumed_from(self, run: FlowRun) -> list[int]:
        """The steps from which stage 2 went on, by the run's log."""
        time.sleep(3)  # logs come in batches
        logs = self.client.read_logs(LogFilter(flow_run_id={"any_": [run.id]}), limit=200, offset=0)
        offset, found = 0, []
        while logs:
            found += [int(m[1]) for log in logs if (m := re.search(r"going on from step (\d+)", log.message))]
            offset += len(logs)
            logs = self.client.read_logs(LogFilter(flow_run_id={"any_": [run.id]}), limit=200, offset=offset)
        return found


def wait_until(condition: Callable[[], bool]) -> float:
    """Seconds it took. Raises TimeoutError."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > PATIENCE:
            raise TimeoutError(f"not within {PATIENCE:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - started


def trainer() -> int:
    """The process id of stage 2, once it has saved a step of this run."""
    before = time.time()
    wait_until(lambda: any(state.stat().st_mtime > before for state in paths.RESUME.glob("stage2/*/state.pt")))
    return int(LOCK.read_text())


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes(words: str) -> list[int]:
    """Of all commands that hold these words."""
    found = subprocess.run(["pgrep", "--full", words], check=False, capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


def cancel(prefect: Prefect, run: FlowRun, _pid: int) -> None:
    prefect.client.set_flow_run_state(run.id, Cancelling())


def kill_trainer(_prefect: Prefect, _run: FlowRun, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_engine(_prefect: Prefect, _run: FlowRun, _pid: int) -> None:
    (engine,) = processes("python.* -m prefect.engine|python.* -m prefect.flow_engine")
    os.kill(engine, signal.SIGKILL)


def kill_worker(prefect: Prefect, _run: FlowRun, _pid: int) -> None:
    prefect.worker.kill()
    prefect.worker.wait()


CASES = {
    "cancelled": cancel,
    "trainer killed": kill_trainer,
    "engine killed": kill_engine,
    "worker killed": kill_worker,
}


def measure(prefect: Prefect, case: str, seed: int) -> dict[str, Any]:
    """Strike once; what became of the run, of its processes, and of the next run."""
    parameters: dict[str, Any] = {"targets": ["stage2"], "params": {"stage2.seed": seed, "stage2.steps": 150}}
    run = prefect.run(**parameters)
    pid = trainer()
    CASES[case](prefect, run, pid)
    gone = wait_until(lambda: not runs(pid))
    result: dict[str, Any] = {"trainer_gone_seconds": round(gone, 1)}
    if case == "worker killed":
        wait_until(lambda: not processes("tasks.stage2"))
        prefect.restart_worker()
    started = time.monotonic()
    result |= {"state": prefect.ended(run), "state_seconds": round(time.monotonic() - started, 1)}
    result["resumed_from"] = prefect.resumed_from(run)
    if result["state"] == "Completed":
        return result
    result["orphans"] = len(processes("tasks.stage2"))
    started = time.monotonic()
    again = prefect.run(**parameters)
    prefect.until(again, "Running", "Completed")
    result["next_run_waited_seconds"] = round(time.monotonic() - started, 1)
    result["next_run"] = prefect.ended(again)
    result["next_run_resumed_from"] = prefect.resumed_from(again)
    return result


def two_at_once(prefect: Prefect, seed: int) -> dict[str, Any]:
    """What a second run does while the first one trains, and in which order they end."""
    first = prefect.run(targets=["stage2"], params={"stage2.seed": seed, "stage2.steps": 150})
    trainer()
    second = prefect.run()
    time.sleep(15)
    result: dict[str, Any] = {"first": prefect.state(first), "second_meanwhile": prefect.state(second)}
    result |= {"first_in_the_end": prefect.ended(first), "second_in_the_end": prefect.ended(second)}
    one, other = prefect.client.read_flow_run(first.id), prefect.client.read_flow_run(second.id)
    assert other.start_time is not None
    assert one.end_time is not None
    result["second_started_after_the_first_ended"] = other.start_time >= one.end_time
    return result


def nothing_to_do(prefect: Prefect) -> dict[str, Any]:
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        run = prefect.run()
        assert prefect.ended(run) == "Completed"
        seconds.append(round(time.monotonic() - started, 1))
    plain = time.monotonic()
    subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], check=True)
    return {"seconds": sorted(seconds), "dvc_repro_seconds": round(time.monotonic() - plain, 1)}


def environment_of(home: Path) -> dict[str, str]:
    return os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": URL,
        "PREFECT_API_AUTH_STRING": SECRET,
        "PREFECT_SERVER_API_AUTH_STRING": SECRET,
    }


@contextmanager
def serving() -> Iterator[Prefect]:
    ours = {PREFECT_API_URL: URL, PREFECT_API_AUTH_STRING: SECRET}
    with tempfile.TemporaryDirectory() as home, temporary_settings(ours):
        environment = environment_of(Path(home))
        command = [sys.executable, "-m", "prefect"]
        server = subprocess.Popen(
            [*command, "server", "start", "--port", str(PORT)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            with get_client(sync_client=True) as client:
                wait_until(lambda: client.api_healthcheck() is None)
                for words in (
                    ("work-pool", "create", "train-vqvae", "--type", "process"),
                    ("--no-prompt", "deploy", "--all"),
                ):
                    subprocess.run([*command, *words], check=True, env=environment, stdout=subprocess.DEVNULL)
                prefect = Prefect(Path(home), client)
                try:
                    yield prefect
                finally:
                    prefect.worker.terminate()
                    prefect.worker.wait()
        finally:
            server.terminate()
            server.wait()


def main() -> None:
    parser = command_line(__doc__, "flow_survival.json")
    parser.add_argument("--cases", nargs="*", default=[*CASES], choices=[*CASES])
    arguments = parser.parse_args()
    results: dict[str, Any] = {"command": command(), "device": processor()}
    first_seed = int(time.time()) % 10**6  # new parameters each time, or DVC would restore an earlier result
    with serving() as prefect:
        results["nothing to do"] = nothing_to_do(prefect)
        for seed, case in enumerate(tqdm(arguments.cases, unit="case"), start=first_seed):
            results[case] = measure(prefect, case, seed)
            print(case, json.dumps(results[case]), flush=True)
        results["two at once"] = two_at_once(prefect, first_seed - 1)
    write_json(arguments.json, results)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
