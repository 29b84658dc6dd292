"""shape-tokenizer encode: real files in, exit codes, listings and tokens out."""

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.dataset
import pytest
import torch
import trimesh

from model.cli import main
from model.sdf import SparseSDF
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens
from model.tokens.files import json_line, tokens_of_json
from model.tokens.tokens import read_parquet
from tests.faults import full, left_over, small_disk
from tests.model.cli.conftest import run, shapes, write_shapes
from tests.small_tokenizer import ROOT, small_tokenizer


def write_bad_files(folder: Path) -> dict[str, str]:
    """What stderr must say of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.obj").write_text("")
    (folder / "prose.stl").write_text("solid advice is hard to find")
    whole = trimesh.creation.icosphere().export(file_type="ply")
    (folder / "cut.ply").write_bytes(whole[: len(whole) // 2])
    trimesh.PointCloud(np.random.default_rng(0).random((50, 3))).export(folder / "points.ply")
    (folder / "nowhere.glb").symlink_to(folder / "gone.glb")
    (folder / "beyond.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 9\n")
    (folder / "nan.off").write_text("OFF\n3 1 0\n0 0 nan\n1 0 0\n0 1 0\n3 0 1 2\n")
    (folder / "vast.off").write_text("OFF\n3 1 0\n-1.7e308 0 0\n1.7e308 0 0\n0 1 0\n3 0 1 2\n")
    (folder / "point.off").write_text("OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n")
    (folder / "sheet.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    (folder / "lying.stl").write_bytes(bytes(80) + (2 * 10**9).to_bytes(4, "little") + bytes(50))
    return {
        "empty.obj": "the file is empty",
        "prose.stl": "the file holds no faces",
        "cut.ply": "the file",
        "points.ply": "the file holds no faces",
        "nowhere.glb": "can't be opened",
        "beyond.off": "names vertex 9 but the file has 3",
        "nan.off": "have NaN or infinite vertices",
        "vast.off": "its coordinates are too large",
        "point.off": "have no area",
        "sheet.off": "no voxel is inside it",
        "lying.stl": "says that it has 2000000000 triangles",
    }


class Encoded(NamedTuple):
    folder: Path
    exit_code: int
    errors: str
    reasons: dict[str, str]  # what is said of each of the bad files


@pytest.fixture(scope="module")
def encoded(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoded:
    """What `encode` makes of good and bad files, on all cores."""
    folder = tmp_path_factory.mktemp("encoded")
    said = io.StringIO()
    with chdir(folder), redirect_stderr(said):
        write_shapes(Path("meshes"))
        with Path("meshes/deep/can.obj").open("a") as file:
            file.write("\nl 1 2\n")
        reasons = write_bad_files(Path("meshes/bad"))
        Path("note.txt").write_text("not a mesh")
        Path("empty").mkdir()
        given = ("meshes", "missing.ply", "note.txt", "empty", "--out", "new/tokens.jsonl")
        exit_code = run("encode", *given, "--tokenizer", str(tokenizer_folder))
    return Encoded(folder, exit_code, said.getvalue(), reasons)


def test_good_files_are_encoded_and_bad_ones_listed(encoded: Encoded):
    assert encoded.exit_code == 1
    lines = [json.loads(line) for line in (encoded.folder / "new/tokens.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["box", "deep/can", "deep/deeper/ball", "ring"]
    assert all(0 <= token < small_tokenizer().vocabulary.size for line in lines for token in line["tokens"])

    reasons = {f"meshes/bad/{name}": reason for name, reason in encoded.reasons.items()}
    reasons |= {
        "missing.ply": "there is no such file",
        "note.txt": "expected a file ending in .obj",
        "empty": "no file",
    }
    rejected = [line for line in encoded.errors.splitlines() if "rejected" in line]
    listed = dict(line.removeprefix("rejected ").split(": ", 1) for line in rejected)
    assert listed.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert any(part in listed[file] for part in reason.split("|")), (file, listed[file])
    assert "note on meshes/deep/can.obj: lines ignored: 1" in encoded.errors
    codes = sum(len(tokens) for tokens in map(small_tokenizer().encode, shapes().values()))
    assert f"encoded 4 of 18 into new/tokens.jsonl, {codes} codes in all; 14 could not be used" in encoded.errors


def test_meshes_come_back_in_their_own_frames_through_json_lines(
    here: Path, encoded: Encoded, capsys: pytest.CaptureFixture[str]
):
    assert run("decode", str(encoded.folder / "new/tokens.jsonl")) == 0
    assert "decoded 4 of 4 into decoded" in capsys.readouterr().err
    for name, mesh in shapes().items():
        decoded = trimesh.load_mesh((Path("decoded") / name).with_suffix(".ply"))
        voxel = mesh.extents.max() / (0.95 * small_tokenizer().resolution)
        np.testing.assert_allclose(decoded.bounds, mesh.bounds, atol=2 * voxel, err_msg=name)
        assert decoded.volume == pytest.approx(mesh.volume, rel=0.15)


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_what_is_written_is_what_the_tokenizer_says(here: Path):
    """Also through a table and npz files, and to the bit."""
    Path("meshes/deep").mkdir(parents=True)
    shapes()["deep/can.obj"].export("meshes/deep/can.obj")
    for out in ("tokens.parquet", "tokens"):
        assert run("encode", "meshes", "--out", out) == 0
        assert run("decode", out, "--out", f"from_{out}", "--format", "obj") == 0
    expected = small_tokenizer().encode(trimesh.load_mesh("meshes/deep/can.obj"))
    assert dict(read_parquet(Path("tokens.parquet")))["deep/can"] == expected
    assert Tokens.load("tokens/deep/can.npz") == expected
    line = tokens_of_json(json_line("can", expected, small_tokenizer()), small_tokenizer())
    assert (line.name, line.tokens) == ("can", expected)
    decoded = Path("from_tokens/deep/can.obj").read_bytes()
    assert decoded == Path("from_tokens.parquet/deep/can.obj").read_bytes()


@pytest.mark.parametrize("out", ["tokens.jsonl", "tokens.parquet", "tokens"])
def test_where_nothing_can_be_encoded_what_was_there_stays(here: Path, capsys: pytest.CaptureFixture[str], out: str):
    Path("tokens.jsonl").write_text("of an earlier run")
    Path("tokens.parquet").write_text("of an earlier run")
    assert run("encode", "mistyped", "--out", out) == 1
    assert f"encoded 0 of 1; nothing was written to {out}" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in Path().glob("tokens*")} == {
        "tokens.jsonl": "of an earlier run",
        "tokens.parquet": "of an earlier run",
    }


@pytest.mark.parametrize("command", [("encode", "box.ply"), ("evaluate", "--meshes", "box.ply")])
@pytest.mark.parametrize("limit", ["--max-seconds", "--max-memory-gb"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_limit_is_a_number_above_0(
    command: tuple[str, ...], limit: str, value: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*command, limit, value) == 2
    assert f"Invalid value for '{limit}': {value}; expected a number above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_a_mesh_that_memory_is_too_small_for_is_listed_and_the_others_encoded(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    write_shapes(Path("meshes"))
    encode = ShapeTokenizer.encode
    seen: list[SparseSDF] = []

    def second_is_too_large(self: ShapeTokenizer, sdf: SparseSDF) -> Tokens:
        seen.append(sdf)
        if len(seen) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return encode(self, sdf)

    monkeypatch.setattr(ShapeTokenizer, "encode", second_is_too_large)
    assert run("encode", "meshes") == 1
    errors = capsys.readouterr().err
    assert f": its {len(seen[1].coords):,} voxels do not fit into the GPU's memory; try --device cpu" in errors
    assert "encoded 3 of 4 into tokens.jsonl" in errors
    assert len(Path("tokens.jsonl").read_text().splitlines()) == 3


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_names_that_collide_become_whole_paths(here: Path):
    trimesh.creation.icosphere().export("ball.ply")
    for folder in ("a", "b"):
        Path(folder).mkdir()
        trimesh.creation.icosphere().export(f"{folder}/ball.stl")
    given = ("a/ball.stl", "b", "ball.ply", "a", "b/ball.stl", str(here / "ball.ply"))  # three of them twice
    assert run("encode", *given, "--out", "tokens.jsonl") == 0
    names = [json.loads(line)["name"] for line in Path("tokens.jsonl").read_text().splitlines()]
    assert names == [f"{str(here)[1:]}/{name}" for name in ("a/ball.stl", "b/ball.stl", "ball.ply")]
    assert run("decode", "tokens.jsonl") == 0
    assert (Path("decoded") / names[2]).with_name("ball.ply.ply").is_file()


@pytest.mark.usefixtures("one_worker")
def test_a_full_disk_ends_the_command_and_blames_no_file(here: Path, capsys: pytest.CaptureFixture[str]):
    Path("meshes").mkdir()
    trimesh.creation.box((2, 0.3, 0.3)).export("meshes/bar.ply")
    disk = Path("disk")
    disk.mkdir()
    with small_disk(disk):
        for arguments in (["encode", "meshes", "--out", "disk/t.jsonl"], ["decode", "disk/t.jsonl", "--out", "disk/d"]):
            message = r"^shape-tokenizer: (No space left on device|File too large): .*disk.*: run the command again$"
            with full(disk, room=0), pytest.raises(SystemExit, match=message):
                main(arguments)
            assert "rejected" not in capsys.readouterr().err
            assert not left_over(disk)
            assert run(*arguments) == 0


KILLED = """
import os, signal
from model.cli import main
from model.tokens import Dataset
import model.tokens.dataset
os.sched_getaffinity = lambda _: {0}
model.tokens.dataset.SHAPES_PER_SHARD = 2
note, count = Dataset.note, 0
def kill_after_four(self, row):
    global count
    note(self, row)
    count += 1
    if count == 4:
        os.kill(os.getpid(), signal.SIGKILL)
Dataset.note = kill_after_four
main()
"""


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_a_data_set_that_was_killed_goes_on_and_is_the_same(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("model.tokens.dataset.SHAPES_PER_SHARD", 2)
    write_shapes(Path("meshes"))
    trimesh.creation.cone(radius=0.6, height=1.2).export("meshes/deep/cone.ply")
    Path("meshes/flat.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n")
    encode = ("encode", "meshes", "--format", "parquet", "--out")
    assert run(*encode, "whole", "--max-tokens", "280") == 1
    errors = capsys.readouterr().err
    assert re.search(r"5 shapes in whole, 6 meshes in this run, [\d.e+-]+ a second; 1 could not be used", errors)

    program = [sys.executable, "-c", KILLED, *encode, "killed"]
    killed = subprocess.run(program, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run("decode", "killed", "--out", "part") == 1
    assert "rejected killed: encode was interrupted there; run it again" in capsys.readouterr().err

    seen: list[SparseSDF] = []
    encode_one = ShapeTokenizer.encode
    monkeypatch.setattr(ShapeTokenizer, "encode", lambda self, grid: seen.append(grid) or encode_one(self, grid))
    assert run(*encode, "killed") == 1
    assert "4 of 6 meshes are done already" in capsys.readouterr().err
    assert len(seen) == 2
    for name in ("tokens-00000.parquet", "tokens-00001.parquet", "tokens-00002.parquet"):
        assert Path("killed", name).read_bytes() == Path("whole", name).read_bytes()
    assert len(list(Path("killed").iterdir())) == len(list(Path("whole").iterdir())) == 3
    rejects = Path("killed_rejects.csv").read_text()
    assert rejects == Path("whole_rejects.csv").read_text()
    assert rejects.startswith("file,reason\nmeshes/flat.off,no voxel is inside it")

    rows = {row["name"]: row for row in pyarrow.dataset.dataset("whole").to_table().to_pylist()}
    tokenizer = small_tokenizer()
    for name in ("ring.ply", "deep/can.obj"):
        tokens = encode_one(tokenizer, Path("meshes", name))
        assert rows[name[:-4]]["tokens"] == tokenizer.to_sequence(tokens)
        assert rows[name[:-4]]["mesh_sha256"] == hashlib.sha256(Path("meshes", name).read_bytes()).hexdigest()
    longer = sorted((name, str(row["length"])) for name, row in rows.items() if row["length"] > 280)
    assert 0 < len(longer) < 5
    assert [tuple(line.split(",")) for line in Path("whole_longer_than_280.csv").read_text().split()[1:]] == longer

    assert run("decode", "whole", "--out", "decoded") == 0
    cone = trimesh.load_mesh("decoded/deep/cone.ply")
    np.testing.assert_allclose(cone.extents, (1.2, 1.2, 1.2), atol=0.15)
    assert len(list(Path("decoded").rglob("*.ply"))) == 5
