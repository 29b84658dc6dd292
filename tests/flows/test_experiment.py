"""Other parameters for one run: what is refused, what is kept, and that the checkout is left as it was."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.experiment import SNAPSHOT, _with_overrides, overridden, put_back, save
from model.errors import InputError
from tasks.run import load_settings
from tests.dvc_project import ROOT
from tests.flows.conftest import changes, outdated, params_text, repro, run

pytestmark = pytest.mark.usefixtures("checkout")


def experiments() -> str:
    return run("dvc", "exp", "list", "--name-only")


def test_nothing_to_override_changes_nothing():
    with overridden({}):
        assert changes() == ""
    assert experiments() == ""


def test_a_run_that_ends_well_is_an_experiment_and_the_checkout_is_as_before():
    before = {path: path.read_bytes() for path in [Path("artifacts/tokenizer"), Path("metrics/stage2.json")]}
    with overridden({"stage2.lr": 0.5, "stage2.recon": "l1"}):
        assert "lr: 0.5" in params_text()
        assert "recon: l1\n" in params_text()
        repro()
        assert all(path.read_bytes() != content for path, content in before.items())
        save("calm-otter", ["dvc.yaml"])
    assert experiments().split() == ["calm-otter"]
    assert changes() == ""
    assert {path: path.read_bytes() for path in before} == before
    assert outdated() == {}
    # Its exit code is not 0: the outputs of optional stages, which never ran, can't be checked out.
    subprocess.run(["dvc", "exp", "apply", "calm-otter"], check=False)
    assert "lr: 0.5" in params_text()
    assert outdated() == {}


def test_a_name_for_the_experiment_is_asked_for_before_anything_runs(tmp_path: Path):
    if subprocess.run(["git", "config", "--system", "user.name"], capture_output=True, check=False).returncode == 0:
        pytest.skip("everybody has a name on this machine")
    for name in ("user.name", "user.email"):
        run("git", "config", "--unset", name)
    code = "from flows.experiment import overridden\nwith overridden({'stage2.lr': 0.5}): print('it runs')"
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "InputError: params: a run with other values becomes an experiment" in done.stderr
    assert "git config user.name NAME" in done.stderr
    assert not done.stdout
    assert changes() == ""


def test_comments_stay_where_they_are():
    Path("params.yaml").write_text(params_text().replace("stage2:\n", "stage2:  # the second one\n"))
    run("git", "commit", "--quiet", "--all", "--message", "a comment")
    with overridden({"stage2.lr": 0.5}):
        assert "stage2:  # the second one" in params_text()


def test_a_run_that_fails_leaves_nothing_behind():
    with pytest.raises(RuntimeError, match="as planned"), overridden({"stage2.lr": 0.5}):
        repro("stage2")
        raise RuntimeError("as planned")
    assert changes() == ""
    assert experiments() == ""
    assert outdated() == {}


def test_what_a_killed_run_left_is_put_back_by_the_next():
    killed = overridden({"stage2.lr": 0.5})
    killed.__enter__()
    repro("stage2")
    assert changes() != ""
    snapshot = SNAPSHOT.rename("kept")
    with pytest.raises(KeyboardInterrupt):  # closes the generator, which finds no snapshot: as if it had been killed
        killed.gen.throw(KeyboardInterrupt())
    SNAPSHOT.parent.mkdir(parents=True, exist_ok=True)
    snapshot.rename(SNAPSHOT)
    with overridden({}):
        assert changes() == ""


def test_a_kill_while_the_snapshot_is_removed_blocks_no_later_run(monkeypatch: pytest.MonkeyPatch):
    begun = overridden({"stage2.lr": 0.5})  # and never ended
    begun.__enter__()

    def killed(folder: Path) -> None:
        (folder / "params.yaml").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("flows.experiment.shutil.rmtree", killed)
        put_back()
    with overridden({"stage2.lr": 0.25}):
        assert "lr: 0.25" in params_text()
    assert changes() == ""
    assert not any(SNAPSHOT.parent.iterdir())


def test_edits_since_a_run_was_killed_are_not_undone():
    killed = overridden({"stage2.lr": 0.5})
    killed.__enter__()
    Path("params.yaml").write_text(params_text() + "# mine\n")
    with pytest.raises(InputError, match=r"a run with params was killed, and params.yaml was changed since; .*before"):
        overridden({}).__enter__()
    assert params_text().endswith("# mine\n")
    assert "lr: 0.5" not in (SNAPSHOT / "params.yaml").read_text()
    with pytest.raises(InputError, match="was changed since"):  # its own way back is as careful
        killed.gen.throw(KeyboardInterrupt())


@pytest.mark.parametrize(
    ("params", "message"),
    [({"stage2.lr": 0.5}, "artifacts/tokenizer: not as dvc.lock has it"), ({"stage2.lrr": 0.5}, "can't be set")],
)
def test_an_output_that_dvc_does_not_have_is_not_overwritten(params: dict, message: str):
    tokenizer = Path("artifacts/tokenizer")
    tokenizer.unlink()
    tokenizer.write_text("trained by hand")
    with pytest.raises(InputError, match=message):
        overridden(params).__enter__()
    assert tokenizer.read_text() == "trained by hand"
    assert changes() == ""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stage2.lrr": 1}, r"params: stage2\.lrr=1 can't be set \(.*lrr.*\); params\.yaml has the keys"),
        ({"stage3.lr": 1}, r"params: stage3\.lr=1 can't be set"),
        ({"stage2.lr": -1}, r"params\.yaml: stage2\.lr: got -1; input should be greater than 0"),
        ({"stage2.lr": "fast"}, r"params\.yaml: stage2\.lr: got 'fast'"),
        ({"stage2": {"lr": 1}}, r"params: stage2 is a section; name its keys one by one, as in stage2\.lr"),
        (
            {"voxelize.meshes": "${oc.env:HOME}"},
            r"params: voxelize\.meshes='\$\{oc\.env:HOME\}' holds \$\{, and nothing",
        ),
        ({"evaluate.fscore_thresholds": [0.1, "${gate.min_usage}"]}, r"holds \$\{, and nothing is looked up for a run"),
        ({"+stage2.momentum": 0.9}, r"params: '\+stage2\.momentum' is no key; expected one of params\.yaml"),
        ({"~stage2.lr": None}, r"params: '~stage2\.lr' is no key"),
        ({"stage2.lr=1,gate.min_usage": 0}, r"params: 'stage2\.lr=1,gate\.min_usage' is no key"),
        ({"import_vae.checkpoint": "a\\$b"}, r"params: import_vae\.checkpoint=.* would become "),
        (
            {"voxelize.dask_scheduler": "tcp://example.org:8786"},
            r"params: voxelize\.dask_scheduler is not for a run to",
        ),
    ],
)
def test_what_no_stage_could_use_is_refused_before_anything_changes(params: dict, message: str):
    with pytest.raises(InputError, match=message), overridden(params):
        pytest.fail("it ran")
    assert changes() == ""


def test_edits_of_ones_own_are_not_mixed_with_it():
    Path("params.yaml").write_text(params_text() + "# mine\n")
    with pytest.raises(InputError, match=r"params.yaml has changes that are not committed"):
        overridden({"stage2.lr": 0.5}).__enter__()
    assert params_text().endswith("# mine\n")


def test_a_value_arrives_as_it_was_given():
    given = {"import_vae.checkpoint": "größe, [a] {b: 'c'} \"d\" %$", "stage2.lr": 1e-7, "voxelize.meshes": "null"}
    Path("params.yaml").write_text(_with_overrides(given))
    settings = load_settings()
    assert settings.import_vae.checkpoint == given["import_vae.checkpoint"]
    assert (settings.stage2.lr, settings.voxelize.meshes) == (1e-7, Path("null"))
