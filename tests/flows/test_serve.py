"""`make serve` on a real server: who reaches its runs, and that none of its parts outlives it."""

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from socket import create_server
from threading import Thread
from uuid import uuid4

import httpx
import psutil
import pytest
import websockets
from prefect.client.orchestration import get_client
from prefect.states import Pending, Running, Scheduled
from prefect.types._datetime import now

from flows import local_server as local_server_module
from flows import serve
from flows.local_server import LocalServer, local_server
from model.errors import InputError
from tests.dvc_project import ROOT
from tests.flows.served import Served, descendants, start, write_checkout
from tests.waiting import SECONDS, wait_until

OPEN = {"/health", "/ready"}  # whether it runs: nothing of any run
SOCKETS = ["events/in", "events/out", "logs/out", "task_runs/subscriptions/scheduled", "work_pools/x/workers/connect"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COMMANDS = re.findall(r"^(\.venv/bin/prefect .*?)(?: +#.*)?$", (ROOT / "README.md").read_text(), re.MULTILINE)


@pytest.fixture
def requests() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=SECONDS) as client:
        yield client


def num_runs() -> int:
    with get_client(sync_client=True) as client:
        return len(client.read_flow_runs())


def csrf_token(served: Served, requests: httpx.Client) -> dict[str, str]:
    """Headers such as only who has the secret gets."""
    given = requests.get(f"{served.api}/csrf-token", params={"client": "test"}, auth=tuple(served.secret.split(":")))
    return {"Prefect-Csrf-Token": given.json()["token"], "Prefect-Csrf-Client": "test"}


@pytest.mark.parametrize("auth", [None, ("checkout", "guess")])
def test_no_request_without_the_secret_reaches_anything(connected: Served, requests: httpx.Client, auth):
    before = num_runs()
    headers = csrf_token(connected, requests)  # so that it is the secret alone that is missing
    paths = requests.get(f"{connected.page}/openapi.json").json()["paths"]
    answers = {
        (path, method.upper()): requests.request(
            method, connected.api + re.sub(r"{.*?}", str(uuid4()), path), json={}, headers=headers, auth=auth
        ).status_code
        for path, methods in paths.items()
        for method in methods
        if path not in OPEN
    }
    assert len(answers) > 150
    assert {method for _, method in answers} == {"GET", "POST", "PUT", "PATCH", "DELETE"}
    assert {key: status for key, status in answers.items() if status != HTTPStatus.UNAUTHORIZED} == {}
    assert num_runs() == before


def test_nor_does_one_with_the_secret_and_without_a_token(served: Served, requests: httpx.Client):
    auth, url = tuple(served.secret.split(":")), f"{served.api}/flow_runs/filter"
    assert requests.post(url, json={}, auth=auth).status_code == HTTPStatus.FORBIDDEN
    assert requests.post(url, json={}, auth=auth, headers=csrf_token(served, requests)).status_code == HTTPStatus.OK


@pytest.mark.parametrize("path", SOCKETS)
@pytest.mark.parametrize("token", [None, "checkout:guess"])
def test_no_stream_without_the_secret_says_anything(served: Served, path: str, token: str | None):
    async def listen() -> str:
        url = f"{served.api}/{path}".replace("http", "ws", 1)
        async with websockets.connect(url, subprotocols=["prefect"], proxy=None) as stream:
            await stream.send(json.dumps({"type": "auth", "token": token}))
            return str(await asyncio.wait_for(stream.recv(), SECONDS))

    with pytest.raises((websockets.ConnectionClosed, websockets.InvalidStatus)):
        asyncio.run(listen())


def test_the_secret_is_its_owners_alone(served: Served):
    assert stat.S_IMODE((served.root / "prefect.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE((served.root / ".prefect").stat().st_mode) == 0o700
    ignored = served.shell("git check-ignore prefect.toml .prefect/prefect.db").stdout.split()
    assert ignored == ["prefect.toml", ".prefect/prefect.db"]
    commands = [" ".join(process.cmdline()) for process in descendants(served.process)]
    assert len(commands) >= 4
    assert not any(served.secret in words for words in [*commands, served.log()])


def test_its_files_are_apart_from_those_of_other_users(served: Served):
    (folder,) = {Path(part.environ()["TMPDIR"]) for part in psutil.Process(served.process.pid).children()}
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (os.geteuid(), 0o700)
    wait_until((folder / "runner_storage").is_dir)
    assert list((served.root / ".prefect" / "ui").rglob("index.html"))


def test_with_it_readmes_command_runs_the_flow(served: Served):
    command = next(command for command in COMMANDS if command.endswith("--watch"))
    ended = served.shell(f"""{command} -p targets='["import_vae"]'""")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "'Completed'" in ended.stdout
    assert (served.root / "artifacts" / "vae").exists()


def test_a_schedule_makes_runs(connected: Served):
    """The command of docs/operating.md, at an hour that is far away."""
    (line,) = re.findall(r"`(\.venv/bin/prefect deployment schedule .*?)`", (ROOT / "docs/operating.md").read_text())
    ended = connected.shell(line.replace('"0 2 ', f'"0 {(now("UTC").hour + 12) % 24} '))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with get_client(sync_client=True) as client:
        wait_until(lambda: any(run.auto_scheduled for run in client.read_flow_runs()))
    cleared = connected.shell(".venv/bin/prefect deployment schedule clear train-vqvae/default --accept-yes")
    assert cleared.returncode == 0, cleared.stdout + cleared.stderr


def test_every_part_hears_ctrl_c_although_the_caller_ignores_it(served: Served):
    parts = [psutil.Process(served.process.pid), *descendants(served.process)]
    for part in parts:
        (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{part.pid}/status").read_text(), re.MULTILINE)
        assert not int(mask, 16) >> (signal.SIGINT - 1) & 1, part.cmdline()


def test_a_second_one_is_refused_at_once_and_told_by_whom(served: Served):
    second = served.shell(f"{sys.executable} -m flows.serve")
    assert second.returncode == 1
    assert re.fullmatch(
        r"serve: process (\d+) \(.* -m prefect server start .*\) listens on port \d+ already; stop it, .*\n",
        second.stderr,
    )
    assert served.process.poll() is None


def test_runs_that_were_under_way_when_all_was_killed_end_and_free_their_slot(connected: Served):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train-vqvae/default")
        later = Scheduled(scheduled_time=now("UTC") + timedelta(days=1))  # not for the worker
        run = client.create_flow_run_from_deployment(deployment.id, state=later)
        for state in (Pending(), Running()):
            client.set_flow_run_state(run.id, state)
        assert client.read_deployment(deployment.id).global_concurrency_limit.active_slots == 1
        serve._end_lost_runs()
        assert client.read_flow_run(run.id).state.is_crashed()
        assert client.read_deployment(deployment.id).global_concurrency_limit.active_slots == 0


# --- a page in a browser -----------------------------------------------------------------------------------------

# What a page can try: to read, to create a run with and without asking the server first, to listen; what it was told.
TRY = """async ([api, deployment, secret]) => {
  const told = (promise) => promise.then(async (answer) => answer.status || answer.type, (error) => error.name);
  const post = (path, options) => told(fetch(api + path, { method: "POST", body: "{}", ...options }));
  const json = { "Content-Type": "application/json", "Authorization": secret };
  const listens = (path) => new Promise((done) => {
    const stream = new WebSocket(api.replace("http", "ws") + path, "prefect");
    stream.onopen = () => stream.send(JSON.stringify({ type: "auth", token: "" }));
    stream.onmessage = (message) => done(message.data);
    stream.onclose = () => done("closed");
  });
  const create = `/deployments/${deployment}/create_flow_run`;
  return {
    reads: await told(fetch(api + "/flow_runs/" + deployment)),
    reads_blindly: await told(fetch(api + "/flow_runs/" + deployment, { mode: "no-cors", credentials: "include" })),
    lists: await post("/flow_runs/filter", { headers: json }),
    creates: await post(create, { headers: json }),
    creates_blindly: await post(create, { mode: "no-cors", credentials: "include" }),
    listens: await listens("/events/out"),
  };
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object):
        pass


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """A page of another origin, on this machine."""
    (tmp_path / "index.html").write_text("<!DOCTYPE html><title>elsewhere</title>")
    with HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        patience = 1000 * SECONDS
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=patience)
        page = browser.new_page()
        page.set_default_timeout(patience)
        yield page
        browser.close()


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH")
def test_a_page_from_elsewhere_can_neither_read_nor_create_runs(connected: Served, page, elsewhere: str):
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train-vqvae/default")
    before = num_runs()
    page.goto(elsewhere)
    secret = f"Basic {b64encode(connected.secret.encode()).decode()}"  # not even with it
    told = page.evaluate(TRY, [connected.api, str(deployment.id), secret])
    assert told == {
        "reads": "TypeError",
        "reads_blindly": "opaque",
        "lists": "TypeError",
        "creates": "TypeError",
        "creates_blindly": "opaque",
        "listens": "closed",
    }
    assert num_runs() == before


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on PATH")
def test_its_own_page_asks_for_the_secret_and_then_shows_the_flow(connected: Served, page):
    page.goto(f"{connected.page}/deployments")
    page.get_by_role("textbox").fill(connected.secret)
    page.keyboard.press("Enter")
    page.get_by_text("train-vqvae").first.wait_for()


# --- its parts ---------------------------------------------------------------------------------------------------


def test_a_port_that_another_process_has_is_refused_with_its_name():
    with create_server(("127.0.0.1", 0)) as listener:
        server = LocalServer("127.0.0.1", listener.getsockname()[1])
        with pytest.raises(InputError, match=rf"^process {os.getpid()} \(.*\) listens on port {server.port} already; "):
            server.refuse_if_taken()
        assert server.is_of(os.getpid())
    server.refuse_if_taken()
    assert not server.answers()
    assert not server.is_of(os.getpid())


@pytest.mark.parametrize(
    "url",
    [
        "http://0.0.0.0:4200/api",
        "http://example.org/api",
        "https://127.0.0.1/api",
        "http://127.0.0.1:4200",
        "http://127.0.0.1:99999/api",
        "http://localhost:4200/api",
        "127.0.0.1:4200/api",
    ],
)
def test_what_others_could_reach_is_not_served(url: str):
    with pytest.raises(InputError, match=rf"PREFECT_API_URL is {url}; expected http://127\.0\.0\.1:PORT/api"):
        local_server(url)


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen]:
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def test_a_part_that_ends_ends_all():
    with program("input()") as worker, program("import time; time.sleep(600)") as server:
        with pytest.raises(serve.EndedError, match=r"^the worker ended with exit code 1; "):
            serve._watch(LocalServer("127.0.0.1", 1), {"server": server, "worker": worker})
        assert server.poll() is None


def test_a_server_that_falls_silent_ends_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr(serve, "SILENCE_SECONDS", 1.0)
    with create_server(("127.0.0.1", 0)) as silent, program("import time; time.sleep(600)") as process:
        monkeypatch.setattr(local_server_module, "ANSWER_SECONDS", 0.1)
        with pytest.raises(serve.EndedError, match=r"^the server has not answered for \d+ s"):
            serve._watch(LocalServer("127.0.0.1", silent.getsockname()[1]), {"server": process})


def test_ctrl_c_ends_it_while_it_starts_although_the_caller_ignores_it(tmp_path: Path):
    write_checkout(tmp_path / "checkout")
    process = start(tmp_path / "checkout")
    wait_until(lambda: len(descendants(process)) >= 2)
    started = descendants(process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert not any(child.is_running() for child in started)
