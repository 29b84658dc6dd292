"""Any checkout works, or says in its first second what to do: each as a user has it, from a shell without .venv.

One stage of the real graph stands for all, started by the real commands; in its place stands one that is done at once.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.dvc_project import ROOT, SMALL_VAE, set_parameter, write_project
from tests.faults import read_only

DVC = [".venv/bin/dvc"]
REPRO = [*DVC, "repro", "--force", "import_vae"]
RESULT = Path("artifacts/vae")


@pytest.fixture
def clean(tmp_path: Path) -> dict[str, str]:
    """An environment in which .venv is not active, of a user whom neither git nor DVC knows."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("DVC_GLOBAL_CONFIG_DIR", "LANG") if name in os.environ}
    return kept | {"HOME": str(home), "PATH": "/usr/bin:/bin", "GIT_CONFIG_NOSYSTEM": "1", "SHELL": "/bin/sh"}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository in a folder with spaces in its name, after its first `dvc repro import_vae`."""
    root = tmp_path_factory.mktemp("checkouts") / "a path with spaces"
    root.mkdir()
    write_project(root)
    (root / ".venv").symlink_to(sys.prefix)
    (root / ".gitignore").write_text("/artifacts/\n/data/\n/.venv\n__pycache__/\n")
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    commands = [["git", "init", "--quiet"], [*DVC, "init", "--quiet"], REPRO, ["git", "add", "--all"]]
    for command in [*commands, ["git", *identity, "commit", "--quiet", "--message", "a first run"]]:
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    return root


@pytest.fixture
def checkout(made_once: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_once, tmp_path / "another path with spaces", symlinks=True)


def run(command: list[str], checkout: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def check(module: str, checkout: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """By this project's module, which the checkout has a stand-in for."""
    code = f"import runpy, sys; sys.path[0] = {str(ROOT)!r}; runpy.run_module({module!r}, run_name='__main__')"
    return run([sys.executable, "-c", code], checkout, environment)


def assert_made(checkout: Path, done: "subprocess.CompletedProcess[str]", before: str) -> None:
    assert done.returncode == 0, done.stderr
    assert (checkout / RESULT).read_text() != before


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SHELL": "tcsh"},
        {"SHELL": "fish"},
        {"SHELL": "zsh"},
        {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"},
    ],
    ids=lambda environment: " ".join(environment.get("SHELL", name) for name in environment) or "nothing special",
)
def test_a_stage_runs_whatever_the_environment(checkout: Path, clean: dict[str, str], environment: dict[str, str]):
    shell = environment.get("SHELL", "sh")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    before = (checkout / RESULT).read_text()
    assert_made(checkout, run(REPRO, checkout, clean | environment | {"SHELL": str(shutil.which(shell))}), before)


def test_a_shell_that_is_none_is_not_asked_by_make(checkout: Path, clean: dict[str, str]):
    planned = subprocess.run(["make", "-n", "repro"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (command,) = (line for line in planned.splitlines() if line.endswith(".venv/bin/dvc repro"))
    nologin = clean | {"SHELL": "/sbin/nologin"}
    before = (checkout / RESULT).read_text()
    assert run(REPRO, checkout, nologin).returncode != 0
    assert_made(checkout, run(["sh", "-c", f"{command} --force import_vae"], checkout, nologin), before)


def test_an_archive_without_git(checkout: Path, clean: dict[str, str]):
    shutil.rmtree(checkout / ".git")
    set_parameter(checkout, "voxelize.meshes", "meshes")
    told = check("tasks.inputs", checkout, clean)
    assert (told.returncode, told.stderr.count("\n")) == (0, 1)
    before = (checkout / RESULT).read_text()
    assert_made(checkout, run(REPRO, checkout, clean), before)


def test_an_experiment_in_a_copy_leaves_the_tree_clean(checkout: Path, clean: dict[str, str]):
    """And where nobody is known to git, DVC either does without or says so before it runs anything."""
    experiment = [*DVC, "exp", "run", "--temp", "--name", "eight", "--set-param", "codebook.dim=8", "import_vae"]
    before = (checkout / RESULT).read_text()
    with (checkout / "params.yaml").open("a") as params:
        params.write("# edited\n")
    refused = run(experiment, checkout, clean)
    assert refused.returncode != 0
    assert "Git user name and email must be configured" in refused.stderr
    assert "Running stage" not in refused.stdout + refused.stderr

    subprocess.run(["git", "checkout", "--quiet", "params.yaml"], cwd=checkout, check=True)
    done = run(experiment, checkout, clean)
    assert done.returncode == 0, done.stderr
    assert run(["git", "status", "--porcelain"], checkout, clean).stdout == ""
    assert (checkout / RESULT).read_text() == before
    shown = run([*DVC, "exp", "show", "--csv"], checkout, clean).stdout.splitlines()
    values = [dict(zip(shown[0].split(","), line.split(","), strict=False)) for line in shown[1:]]
    assert [value["Experiment"] for value in values if value["codebook.dim"] == "8"] == ["eight"]


@pytest.mark.slow
def test_two_workers_do_what_is_queued(checkout: Path, clean: dict[str, str]):
    for name in ("user.name", "user.email"):
        subprocess.run(["git", "config", name, "x@y"], cwd=checkout, check=True)
    names = {"one", "two", "three"}
    for dim, name in enumerate(sorted(names), start=8):
        queued = ["exp", "run", "--queue", "--name", name, "--set-param", f"codebook.dim={dim}", "import_vae"]
        assert run([*DVC, *queued], checkout, clean).returncode == 0
    planned = subprocess.run(["make", "-n", "queue", "JOBS=2"], cwd=ROOT, capture_output=True, text=True, check=True)
    (command,) = (line for line in planned.stdout.splitlines() if line.endswith("dvc queue start --jobs 2"))
    started = run(["sh", "-c", command.replace(str(ROOT), str(checkout))], checkout, clean)
    assert "Started '2'" in started.stdout
    while "Queued" in (status := run([*DVC, "queue", "status"], checkout, clean).stdout) or "Running" in status:
        time.sleep(2)
    assert status.count("Success") == 3, status
    assert set(run([*DVC, "exp", "list", "--name-only"], checkout, clean).stdout.split()) == names
    assert run(["git", "status", "--porcelain"], checkout, clean).stdout == ""


def test_results_behind_a_link_out_of_the_repository_are_refused_before_a_stage(
    checkout: Path, clean: dict[str, str], tmp_path: Path
):
    elsewhere = tmp_path / "elsewhere"
    (checkout / "artifacts").rename(elsewhere)
    (checkout / "artifacts").symlink_to(elsewhere)
    shutil.copy(ROOT / "params.yaml", checkout)
    told = check("tasks.run.check", checkout, clean)
    assert told.returncode == 1
    assert told.stderr.startswith(f"artifacts is a link to {elsewhere}, and DVC records nothing outside of the git")
    assert told.stderr.count("\n") == 1
    shutil.rmtree(checkout / ".git")
    assert check("tasks.run.check", checkout, clean).returncode == 0


def test_a_change_behind_a_link_to_the_data_is_seen(checkout: Path, clean: dict[str, str], tmp_path: Path):
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    (meshes / "chair.stl").write_text("chair")
    (checkout / "linked").symlink_to(meshes)
    set_parameter(checkout, "voxelize.meshes", "linked")
    repro = [*DVC, "repro", "voxelize"]
    assert "Running stage 'voxelize'" in run(repro, checkout, clean).stdout
    assert "Running stage 'voxelize'" not in run(repro, checkout, clean).stdout
    (meshes / "table.stl").write_text("table")
    assert "Running stage 'voxelize'" in run(repro, checkout, clean).stdout


def test_a_tree_that_is_read_only_says_where_to_work_and_a_clone_of_it_works(
    checkout: Path, clean: dict[str, str], tmp_path: Path
):
    clone = tmp_path / "clone"
    with read_only(checkout):
        told = check("tasks.inputs", checkout, clean)
        assert told.returncode == 1
        assert told.stderr.startswith(f"{checkout} can't be written to")
        assert f"git clone {checkout} ELSEWHERE" in told.stderr
        subprocess.run(["git", "clone", "--quiet", checkout, clone], check=True)
        (clone / ".venv").symlink_to(checkout / ".venv")
        done = run(REPRO, clone, clean)
    assert done.returncode == 0, done.stderr
    assert (clone / RESULT).is_file()
    assert (clone / SMALL_VAE).is_file()
