"""Server, work pool, deployment and worker on this machine, in the foreground: `make serve`, ended by Ctrl-C.

The server is that of PREFECT_API_URL, or of [tool.prefect] in pyproject.toml. It is started, and stopped at the end,
unless one answers there already. For production start the parts one by one, as flows/README.md says.
"""

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from prefect.settings import PREFECT_API_URL

START_SECONDS = 120.0  # a first start makes the database
STOP_SECONDS = {signal.SIGINT: 40.0, signal.SIGTERM: 10.0, signal.SIGKILL: 5.0}  # a trainer saves its state first


def main() -> None:
    url = PREFECT_API_URL.value()
    if not url:
        sys.exit("PREFECT_API_URL is not set; set it to http://127.0.0.1:4200/api, as pyproject.toml does")
    with ExitStack() as running:
        if not _answers(url):
            address = urlsplit(url)
            running.enter_context(
                _process("server", "start", "--host", str(address.hostname), "--port", str(address.port or 4200))
            )
            _wait_for(url)
        work_pool, deployment = _deployed()
        _prefect("work-pool", "create", work_pool, "--type", "process", "--overwrite")
        _prefect("--no-prompt", "deploy", "--all")
        worker = running.enter_context(_process("worker", "start", "--pool", work_pool))
        print(
            f"\nserving on {url.removesuffix('/api')} until Ctrl-C; "
            f"run with: .venv/bin/prefect deployment run train-vqvae/{deployment} --watch\n",
            flush=True,
        )
        sys.exit(worker.wait())


def _deployed() -> tuple[str, str]:
    """The work pool and the name of prefect.yaml's deployment."""
    (deployment,) = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    return deployment["work_pool"]["name"], deployment["name"]


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def _prefect(*arguments: str) -> None:
    subprocess.run(_command(*arguments), check=True)


@contextmanager
def _process(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A prefect command of its own session, which Ctrl-C does not reach: it is stopped after those started later."""
    with subprocess.Popen(_command(*arguments), start_new_session=True) as process:
        try:
            yield process
        finally:
            for number, seconds in STOP_SECONDS.items():
                process.send_signal(number)
                try:
                    process.wait(seconds)
                    break
                except subprocess.TimeoutExpired:
                    continue


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(url):
        if time.monotonic() > deadline:
            sys.exit(f"the server did not answer at {url} within {START_SECONDS:.0f} s; its output above says why")
        time.sleep(0.5)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    except subprocess.CalledProcessError as error:
        sys.exit(f"`prefect {' '.join(error.cmd[3:])}` failed; its output is above")
