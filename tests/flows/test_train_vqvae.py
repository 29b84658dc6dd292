"""Whole runs on a real Prefect server and real DVC; in the stages' places work stand-ins that are done at once."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from prefect import State
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter

from flows.alerts import WEBHOOK
from flows.experiment import SNAPSHOT
from flows.train_vqvae import bring_up_to_date, train_vqvae
from tasks.run import only_one
from tests.dvc_project import set_parameter
from tests.flows.conftest import changes, replace_stage, run

REFUSAL = "gate: the codebook is not good enough: usage 0.1 (gate.min_usage: >= 0.9): raise stage1.kmeans_iterations"


pytestmark = pytest.mark.usefixtures("connected")


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bring_up_to_date, "retry_delay_seconds", 0)


class Listener(BaseHTTPRequestHandler):
    heard: ClassVar[list[dict]] = []

    def do_POST(self):
        self.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object):
        pass


@pytest.fixture
def heard() -> Iterator[list[dict]]:
    """What the alerts' webhook was sent."""
    Listener.heard.clear()
    with HTTPServer(("127.0.0.1", 0), Listener) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        Webhook(url=f"http://127.0.0.1:{listener.server_port}/alerts").save(WEBHOOK, overwrite=True)
        yield Listener.heard
        Webhook.delete(WEBHOOK)
        listener.shutdown()


def attempts(state: State) -> dict[str, int]:
    """How often each stage of the run was tried."""
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [state.state_details.flow_run_id]}))
    return {task.name: task.run_count for task in runs}


def artifacts(state: State) -> dict[str, object]:
    with get_client(sync_client=True) as client:
        run_filter = FlowRunFilter(id={"any_": [state.state_details.flow_run_id]})
        found = client.read_artifacts(flow_run_filter=run_filter)
    return {artifact.key: artifact.data for artifact in found}


def test_other_parameters_rerun_what_they_touch_and_become_an_experiment(checkout: Path):
    state = train_vqvae(params={"stage2.lr": 0.5}, return_state=True)
    assert (state.name, state.message) == ("Completed", "ran stage2, evaluate, final_gate")
    assert changes() == ""
    name = run("dvc", "exp", "list", "--name-only").strip()
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(state.state_details.flow_run_id).name == name
    stages = {row["stage"]: row["outcome"] for row in json.loads(artifacts(state)["stages"])}
    assert [stage for stage, outcome in stages.items() if outcome == "ran"] == ["stage2", "evaluate", "final_gate"]
    assert set(stages.values()) == {"ran", "unchanged"}

    again = train_vqvae(targets=["import_vae"], return_state=True)
    assert again.message == "everything was up to date"


def test_an_unknown_parameter_is_refused_before_anything_runs(checkout: Path):
    state = train_vqvae(params={"stage2.lrr": 0.5}, return_state=True)
    assert state.is_failed()
    assert "stage2.lrr=0.5 can't be set" in state.message
    assert attempts(state) == {}
    assert changes() == ""


def test_a_wrong_value_in_params_yaml_ends_the_run_with_its_key(checkout: Path):
    set_parameter(checkout, "stage2.lr", -1.0)
    state = train_vqvae(return_state=True)
    assert state.is_failed()
    assert state.message.startswith("params.yaml: stage2.lr: got -1.0")
    assert attempts(state) == {}


def test_a_gate_that_refuses_ends_the_run_with_its_reason(checkout: Path, heard: list[dict]):
    replace_stage("gate", f"import sys; print({REFUSAL!r}, file=sys.stderr); sys.exit(3)")
    state = train_vqvae(return_state=True)
    assert (state.name, state.message) == ("GateRefused", REFUSAL)
    assert state.is_failed()
    assert {key: attempts(state)[key] for key in attempts(state) if key in ("gate", "stage2")} == {"gate": 1}
    stages = {row["stage"]: row["outcome"] for row in json.loads(artifacts(state)["stages"])}
    assert (stages["gate"], stages["stage2"], stages["evaluate"]) == ("failed", "not run", "not run")
    assert [(message["event"], message["message"]) for message in heard] == [("gate-refused", REFUSAL)]
    assert heard[0]["flow_run"] in heard[0]["text"]


def test_a_stage_that_was_killed_is_tried_again(checkout: Path):
    stand_in = Path("tasks/import_vae.py").read_text()
    kill = "import os, pathlib, signal\nif not pathlib.Path('tried').exists():\n"
    kill += "    pathlib.Path('tried').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    replace_stage("import_vae", kill + stand_in)
    state = train_vqvae(targets=["import_vae"], return_state=True)
    assert (state.name, state.message) == ("Completed", "ran import_vae")
    assert attempts(state)["import_vae"] == 2


def test_a_stage_that_fails_is_not(checkout: Path, heard: list[dict]):
    replace_stage("import_vae", "import sys; sys.exit('import_vae: a weight holds NaN; take another file')")
    state = train_vqvae(params={"stage1.lr": 9.0}, return_state=True)
    assert (state.name, state.message) == ("Failed", "import_vae: a weight holds NaN; take another file")
    assert attempts(state)["import_vae"] == 1
    assert changes() == ""
    assert not SNAPSHOT.exists()
    assert [message["event"] for message in heard] == ["run-failed"]


def test_progress_figures_and_pictures_are_on_the_page(checkout: Path):
    evaluation = Path("metrics/evaluate.json")
    figures = {"cd_l1": 0.005, "fscore_0.01": 0.5, "normal_consistency": 0.9, "spurious_area": 0.0125, "failures": 2}
    lines = "stage2: 30 of 120 steps, 3 a second, 30 s left loss 0.1"
    for name, extra in {
        "stage2": f"print({lines!r})",
        "evaluate": f"path = pathlib.Path({str(evaluation)!r}); path.write_text({json.dumps({'vae': figures})!r})\n"
        "plots = pathlib.Path('metrics/plots'); plots.unlink(); plots.mkdir(); (plots / 'shapes.png').write_text('-')",
    }.items():
        replace_stage(name, Path(f"tasks/{name}.py").read_text() + extra + "\n")
    state = train_vqvae(targets=["evaluate"], return_state=True)
    shown = artifacts(state)
    assert shown["progress-stage2"] == 25
    assert "| row | CD-L1 | F at 0.01 | normals | spurious area | failed |" in shown["evaluation"]
    assert "| VAE | 0.00500 | 0.500 | 0.900 | 1.25 % | 2 |" in shown["evaluation"]
    assert shown["shapes"].startswith("data:image/png;base64,")


def test_a_second_run_in_the_same_checkout_is_refused(checkout: Path):
    with only_one("train-vqvae"):
        state = train_vqvae(return_state=True)
    assert state.is_failed()
    assert "runs it already; wait for it or stop it" in state.message


def test_a_run_that_a_worker_starts_beside_another_waits_for_it(checkout: Path, monkeypatch: pytest.MonkeyPatch):
    """Prefect may let two through: see _alone_in_this_checkout."""
    monkeypatch.setattr("flows.train_vqvae.FLOW_RUN_ID", "A_WORKER_STARTED_THIS")
    monkeypatch.setenv("A_WORKER_STARTED_THIS", "1")
    with ExitStack() as other:
        other.enter_context(only_one("train-vqvae"))
        monkeypatch.setattr("flows.train_vqvae.sleep", lambda _seconds: other.close())
        state = train_vqvae(targets=["import_vae"], return_state=True)
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(state.state_details.flow_run_id)
    assert [each.name for each in states][-3:] == ["Waiting", "Running", "Completed"]
