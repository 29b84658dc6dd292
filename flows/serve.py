"""Server, work pool, deployment and worker on this machine, in the foreground: `make serve`, ended by Ctrl-C.

The server listens where PREFECT_API_URL, or [tool.prefect] in pyproject.toml, says, on the loopback only, and answers
nobody without the secret of prefect.toml. For production start the parts one by one, as docs/operating.md says.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import yaml

from flows import keeper
from flows.credentials import SETTINGS, ensure_credentials
from flows.local_server import ON_ITS_OWN, LocalServer, bypass_proxies, local_server
from model.errors import INTERRUPTED, InputError

START_SECONDS = 600.0  # a first start makes the database; a server that fails ends the wait at once
REQUEST_SECONDS = 10.0  # for the server to finish what it is asked
TRAINER_SECONDS = 40.0  # for a worker to end its run, whose trainer saves its state first
LOOK_SECONDS = 0.5
HEALTH_SECONDS = 10.0  # from one look at the server's health to the next
SILENCE_SECONDS = 120.0  # a server without an answer for so long is taken for dead


class EndedError(RuntimeError):
    """A part that the others need ended, or does not answer."""


def main() -> None:
    ensure_credentials()
    from prefect.settings import get_current_settings  # reads prefect.toml when it is imported

    settings = get_current_settings()
    url, secret = settings.api.url, settings.api.auth_string
    if not url or not secret:
        raise InputError("PREFECT_API_URL or PREFECT_API_AUTH_STRING is set to nothing; unset it")
    server = local_server(url)
    server.refuse_if_taken()
    proxied = bypass_proxies()
    environment = _environment(server, secret.get_secret_value())
    work_pool, deployment = _deployed()
    command = _prefect("server", "start", "--host", server.host, "--port", str(server.port))
    with ExitStack() as running:
        # Else the page is copied into Prefect's own folder, and what workers keep to /tmp/runner_storage: another user
        # who was the first there would be the only one who may read the one and write to the other.
        environment["PREFECT_SERVER_UI_STATIC_DIRECTORY"] = str(settings.home.absolute() / "ui")
        environment["TMPDIR"] = running.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        parts = {"server": running.enter_context(_kept(command, environment, REQUEST_SECONDS))}
        _wait_for(server, parts["server"])
        _end_lost_runs()
        _create_work_pool(work_pool)
        subprocess.run(_prefect("--no-prompt", "deploy", "--all"), check=True, env=environment)
        worker = _prefect("worker", "start", "--pool", work_pool)
        parts["worker"] = running.enter_context(_kept(worker, environment, TRAINER_SECONDS))
        _say_how_to_use(server, deployment, proxied)
        _watch(server, parts)


def _environment(server: LocalServer, secret: str) -> dict[str, str]:
    """For every part: what protects the server, whatever else the user's settings or environment say about it."""
    return os.environ | {
        "PREFECT_API_URL": server.api,
        "PREFECT_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_AUTH_STRING": secret,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": server.page,
    }


def _deployed() -> tuple[str, str]:
    """The work pool and the name of prefect.yaml's deployment."""
    (deployment,) = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    return deployment["work_pool"]["name"], deployment["name"]


def _prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


@contextmanager
def _kept(command: list[str], environment: Mapping[str, str], patience: float) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that ends with us, however we end, and not by Ctrl-C itself: it is stopped after those started later.

    It is told to stop by SIGINT, and after so many seconds of patience by what it can't overhear.
    """
    command_line = [sys.executable, keeper.__file__, "--patience", str(patience), *command]
    # Of its own session, which Ctrl-C does not reach.
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, start_new_session=True, env=environment) as process:
        try:
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()  # the leash
            process.wait()


def _wait_for(server: LocalServer, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not (server.is_of(process.pid) and server.answers()):
        if process.poll() is not None:
            raise EndedError(f"the server ended with exit code {process.returncode}; its output above says why")
        if time.monotonic() > deadline:
            raise EndedError(f"the server did not answer at {server.api} within {START_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)
    if not server.refuses_strangers():
        raise EndedError(f"the server at {server.api} answers without the secret of {SETTINGS}; it was stopped")


def _end_lost_runs() -> None:
    """Set the runs that were under way when server and worker were killed to Crashed, or the next ones would wait."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas import State
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    lost = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}})
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=lost):
            crashed: State[None] = Crashed(
                message="`make serve` was killed while this ran; the next run goes on from what was saved"
            )
            client.set_flow_run_state(run.id, crashed, force=True)


def _create_work_pool(name: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))


def _say_how_to_use(server: LocalServer, deployment: str, proxied: bool) -> None:
    print(
        f"\nserving on {server.page} until Ctrl-C; the page asks for api.auth_string of {SETTINGS}\n"
        f"run with: {f'NO_PROXY={ON_ITS_OWN} ' if proxied else ''}"
        f".venv/bin/prefect deployment run train-vqvae/{deployment} --watch\n",
        flush=True,
    )


def _watch(server: LocalServer, parts: Mapping[str, "subprocess.Popen[bytes]"]) -> NoReturn:
    """Until a part ends, or the server is silent for too long. Raises EndedError."""
    heard = asked = time.monotonic()
    while True:
        for name, process in parts.items():
            if process.poll() is not None:
                raise EndedError(f"the {name} ended with exit code {process.returncode}; its output above says why")
        now = time.monotonic()
        if now - asked >= HEALTH_SECONDS:
            asked = now
            if server.answers():
                heard = now
            elif now - heard > SILENCE_SECONDS:
                raise EndedError(f"the server has not answered for {now - heard:.0f} s; it was stopped")
        time.sleep(LOOK_SECONDS)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Set also where the caller ignores SIGINT, as nohup and a shell's background jobs do: else nothing started here
    # would hear it either.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except subprocess.CalledProcessError as error:
        sys.exit(f"`prefect {' '.join(error.cmd[3:])}` failed; its output is above")
    except (EndedError, InputError) as error:
        sys.exit(f"serve: {error}")
