"""Every stage ends in an exit code and at most one sentence, and its outputs are there whole or not at all."""

import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import InputError
from model.files import whole_directory, write_whole
from tasks.run import Settings, run_stage

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to run stages in, with the shipped parameters."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(program: str, **options) -> subprocess.Popen[str]:
    """Start a stage in a process of its own; `program` finds everything of tasks.run.stage imported."""
    imports = (
        "import os, sys, time\nfrom pathlib import Path\nfrom model.files import *\nfrom tasks.run.stage import *\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", imports + program],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- exit codes --------------------------------------------------------------------------------------------------


def test_stage_gets_the_settings_and_ends_well():
    seen: list[Settings] = []
    run_stage("encode", seen.append)
    assert seen[0].codebook.num_codes == 1024


def test_input_error_is_one_sentence_with_the_stage_in_front():
    def stage(settings: Settings) -> None:
        raise InputError("latents have 16 channels but codebook.dim is 64; set codebook.dim: 16 in params.yaml")

    with pytest.raises(SystemExit) as ended:
        run_stage("stage1", stage)
    assert str(ended.value) == (
        "stage1: latents have 16 channels but codebook.dim is 64; set codebook.dim: 16 in params.yaml"
    )


def test_wrong_parameter_ends_before_the_stage_begins(project: Path):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("min_usage", "min_use"))
    begun: list[Settings] = []
    with pytest.raises(SystemExit, match=r"^gate: params\.yaml: gate\..*min_use: unknown key"):
        run_stage("gate", begun.append)
    assert begun == []


def test_missing_file_is_named():
    with pytest.raises(SystemExit, match=r"^import_vae: No such file or directory: weights\.safetensors"):
        run_stage("import_vae", lambda settings: Path("weights.safetensors").read_bytes())


def test_a_fault_of_ours_keeps_its_traceback():
    """Only what the user gave is put into one sentence."""

    def stage(settings: Settings) -> None:
        raise AssertionError("codes and counts differ in length")

    with pytest.raises(AssertionError, match="codes and counts"):
        run_stage("stage1", stage)


def test_exit_code_and_sentence_as_a_shell_sees_them():
    process = run("def stage(settings): raise InputError('no meshes; add some')\nrun_stage('voxelize', stage)")
    assert process.communicate() == ("", "voxelize: no meshes; add some\n")
    assert process.returncode == 1


@pytest.mark.parametrize("handler", [signal.SIG_DFL, signal.SIG_IGN])
def test_ctrl_c_leaves_no_output_and_one_sentence_whatever_the_caller_makes_of_it(project: Path, handler):
    program = """
def stage(settings):
    with whole_directory(Path("data/sdf")) as directory:
        (directory / "shard").write_text("half")
        print("writing", flush=True)
        time.sleep(600)
run_stage("voxelize", stage)
"""
    process = run(program, preexec_fn=lambda: signal.signal(signal.SIGINT, handler))
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.startswith("voxelize: interrupted; ")
    assert said.count("\n") == 1
    assert list((project / "data").iterdir()) == []


# --- whole or not at all -----------------------------------------------------------------------------------------


def files(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}


def test_directory_appears_when_it_is_complete():
    target = Path("data/sdf")
    with whole_directory(target) as directory:
        (directory / "shard").write_text("rows")
        assert not target.exists()
    assert files(Path("data")) == {"sdf/shard": "rows"}


def test_directory_replaces_the_one_before_altogether():
    target = Path("data/sdf")
    for name in ("old", "new"):
        with whole_directory(target) as directory:
            (directory / name).write_text(name)
    assert files(Path("data")) == {"sdf/new": "new"}


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt])
def test_directory_stays_as_it_was_when_its_making_fails(fault: type[BaseException]):
    target = Path("data/sdf")
    with whole_directory(target) as directory:
        (directory / "shard").write_text("rows")
    with pytest.raises(fault), whole_directory(target) as directory:
        (directory / "shard").write_text("half")
        raise fault
    assert files(Path("data")) == {"sdf/shard": "rows"}


def test_what_a_killed_run_left_is_not_taken_over():
    left = Path("data/.sdf.partial")
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    with whole_directory(Path("data/sdf")) as directory:
        (directory / "shard").write_text("rows")
    assert files(Path("data")) == {"sdf/shard": "rows"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_full_disk_while_a_directory_is_filled():
    def stage(settings: Settings) -> None:
        with whole_directory(Path("data/sdf")) as directory:
            (directory / "index").write_text("rows")
            (directory / "shard").symlink_to("/dev/full")
            (directory / "shard").write_text("rows")

    with pytest.raises(SystemExit, match=r"^voxelize: No space left on device.*run the stage again$"):
        run_stage("voxelize", stage)
    assert list(Path("data").iterdir()) == []


def test_file_is_written_with_its_folders_and_replaces_the_one_before():
    write_whole(Path("metrics/gate.json"), "old and longer")
    write_whole(Path("metrics/gate.json"), b"new")
    assert files(Path("metrics")) == {"gate.json": "new"}


def test_file_stays_as_it_was_when_the_disk_takes_no_more(project: Path):
    """The limit on a file's size ends a write half way, as a full disk does."""
    write_whole(Path("metrics/gate.json"), "old")
    program = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_stage("gate", lambda settings: write_whole(Path("metrics/gate.json"), b"x" * 100_000))
"""
    process = run(program, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)))
    _, said = process.communicate()
    assert process.returncode == 1
    assert said.startswith("gate: File too large")
    assert said.count("\n") == 1
    assert files(project / "metrics") == {"gate.json": "old"}
