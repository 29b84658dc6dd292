"""Results in an S3-compatible store: a second checkout takes from it what it needs, and no more."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from dvc.repo import Repo
from moto.server import ThreadedMotoServer

from flows.graph import plan, push
from flows.stage_process import reproduce
from tests.dvc_project import ROOT, set_parameter
from tests.flows.conftest import changes, run

# As flows/repro.py for each stage that is named, in one process: each takes a second to begin.
EACH = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from flows.repro import repro
print(json.dumps({{stage: repro(stage, force=False, remote=True) for stage in sys.argv[1:]}}))
"""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a store with an empty bucket `shapes`."""
    for key, value in KEYS.items():
        monkeypatch.setenv(key, value)
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="shapes")
    client.close()
    yield url
    server.stop()


def outcome(stage: str) -> str:
    return reproduce(stage, force=False, remote=True, on_line=print, orphaned=lambda: False).outcome


def test_a_second_checkout_evaluates_anew_without_the_meshes(checkout: Path, store: str, tmp_path: Path, monkeypatch):
    with Repo() as repo, repo.config.edit("repo") as config:
        config["core"] = {"remote": "store"}
        config["remote"] = {"store": {"url": "s3://shapes/tokenizer", "endpointurl": store}}
    run("git", "commit", "--quiet", "--all", "--message", "a remote")
    push()

    second = tmp_path / "second"
    run("git", "clone", "--quiet", str(checkout), str(second))
    monkeypatch.chdir(second)
    assert not Path("artifacts").exists()
    set_parameter(second, "evaluate.num_points", 10)
    *others, evaluate, final_gate = plan([])
    ends = json.loads(run(sys.executable, "-c", EACH, *others).splitlines()[-1])
    assert ends == {stage: {"outcome": "unchanged"} for stage in others}
    assert (outcome(evaluate), outcome(final_gate)) == ("ran", "ran")
    assert Path("artifacts/tokenizer").exists()
    assert not Path("data/meshes").exists()
    assert "metrics/evaluate.json" in changes()
