"""shape-tokenizer in a shell: arguments, help, completions, interruptions."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.cli import main
from model.cli.commands import ROWS
from model.meshes import SUFFIXES
from model.report import ROW_TITLES
from tests.model.cli.conftest import run
from tests.small_tokenizer import ROOT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "x.ply", "--tokenizer", "nowhere"], "nowhere: not a saved tokenizer"),
        (["encode", "x.ply", "--out", "tokens.csv"], "tokens.csv: tokens go to .jsonl, to .parquet or"),
        (["encode", "x.ply", "--format", "parquet"], "--out is tokens.jsonl; expected a folder for --format parquet"),
        (["encode", "x.ply", "--device", "abacus"], "--device is abacus; expected cpu or cuda"),
        (["encode", "x.ply", "--device", "mps"], "--device is mps; expected cpu or cuda"),
        (["encode", "x.ply", "--out", "there.jsonl"], "there.jsonl is a folder, which tokens can't replace"),
        (["encode", "x.ply", "--out", "there"], "there is a file, which tokens can't replace"),
        pytest.param(
            ["encode", "x.ply", "--device", "cuda"],
            "there is no such GPU that torch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_begin_says_why_in_one_line(here: Path, arguments: list[str], message: str):
    Path("there.jsonl").mkdir()
    Path("there").touch()
    with pytest.raises(SystemExit, match=message) as end:
        main(arguments)
    assert "\n" not in str(end.value.code)


def test_wrong_arguments_end_with_2_and_help_with_examples(capsys: pytest.CaptureFixture[str]):
    assert run("encode", "x", "--dask", "tcp://h:1") == run("encode", "x", "--max-tokens", "0") == 2
    assert run("decode", "x", "--out", __file__) == run("evaluate", "--meshes", "x", "--out", __file__) == 2
    assert run() == run("melt") == run("encode") == run("decode", "x", "--format", "doc") == 2
    assert (
        run("compare") == run("export-vae", "a", "b.ckpt", "--layout", "spconf") == run("export-vae", "a", "b.bin") == 2
    )
    capsys.readouterr()
    example = "shape-tokenizer encode meshes/ --out tokens.jsonl"
    for arguments in (["--help"], ["-h"], ["encode", "--help"], ["decode", "--help"]):
        assert run(*arguments) == 0
        assert example in capsys.readouterr().out
    for command in ("compare", "evaluate", "export-vae"):
        assert run(command, "--help") == 0
        assert f"shape-tokenizer {command} " in capsys.readouterr().out.split("Example")[1]


def test_what_help_lists_is_what_the_rooms_know(capsys: pytest.CaptureFixture[str]):
    """commands.py repeats it so as not to import them."""
    assert tuple(ROW_TITLES) == ROWS
    assert run("encode", "--help") == 0
    assert f"({', '.join(SUFFIXES)})" in " ".join(capsys.readouterr().out.split())


def command(arguments: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which says on stderr what it imports."""
    program = "import sys; from model.cli import main; sys.argv[0] = 'shape-tokenizer'; main()"
    line = [sys.executable, "-X", "importtime", "-c", program, *arguments]
    return subprocess.run(line, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_help_waits_for_no_library():
    done = command(["encode", "--help"])
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"numpy", "pyarrow", "scipy", "torch", "trimesh", "warp"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("shape-tokenizer ", {"compare", "decode", "encode", "evaluate", "export-vae"}),
        ("shape-tokenizer enc", {"encode"}),
        ("shape-tokenizer decode --fo", {"--format"}),
        ("shape-tokenizer decode --format ", {"ply", "glb", "obj"}),
        ("shape-tokenizer compare --rows st", {"stage1", "stage2"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(words: str, expected: set[str]):
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = command(_SHAPE_TOKENIZER_COMPLETE="bash_complete", **asked)
    assert {line.removeprefix("plain,") for line in done.stdout.splitlines()} == expected, done.stderr


def test_bash_takes_the_completions_as_help_says(capsys: pytest.CaptureFixture[str]):
    assert run("--help") == 0
    assert 'eval "$(_SHAPE_TOKENIZER_COMPLETE=bash_source shape-tokenizer)"' in capsys.readouterr().out
    source = command(_SHAPE_TOKENIZER_COMPLETE="bash_source")
    script = f"{source.stdout}\ncomplete -p shape-tokenizer"
    asked = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=True)
    assert asked.stdout.strip().endswith("shape-tokenizer")


def test_an_interruption_says_so_and_ends_as_shells_report_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.cli.encode.load_tokenizer", interrupted)
    assert run("encode", "x.ply") == 130
    assert "shape-tokenizer: interrupted; what is written so far is whole" in capsys.readouterr().err
