"""shape-tokenizer as a shell calls it: real files in, exit codes, listings and files out."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree

from model.cli import main
from model.cli.commands import ROWS
from model.files import digest_of
from model.meshes import SUFFIXES, load_mesh
from model.metrics import compare
from model.report import ROW_TITLES
from model.sdf import SparseSDF, normalised_surface
from model.sparse import SparseTensor
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens
from model.tokens.files import json_line, tokens_of_json
from model.tokens.tokens import read_parquet
from model.vae import SparseSDFVAE
from tests.faults import full, left_over, small_disk
from tests.shapes import ring_and_box
from tests.small_tokenizer import ROOT, small_tokenizer


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    small_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def here(tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the tokenizer where the pipeline puts it, named in the environment."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "tokenizer").symlink_to(tokenizer_folder)
    monkeypatch.setenv("SHAPE_TOKENIZER", "artifacts/tokenizer")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code if isinstance(end.value.code, int) else 1


def shapes() -> dict[str, trimesh.Trimesh]:
    """By file name; none in the cube's own frame."""
    ring = ring_and_box().apply_scale(3.0)
    return {
        "ring.ply": ring.apply_translation([10, 0, -4]),
        "deep/can.obj": trimesh.creation.cylinder(radius=1.0, height=3.0),
        "deep/deeper/ball.stl": trimesh.creation.icosphere(subdivisions=3, radius=0.01),
        "box.glb": trimesh.creation.box((4.0, 3.0, 2.0)),
    }


def write_shapes(folder: Path) -> None:
    for name, mesh in shapes().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        mesh.export(folder / name)


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


def test_meshes_come_back_in_their_own_frames_through_json_lines(here: Path, capsys: pytest.CaptureFixture[str]):
    write_shapes(Path("meshes"))
    assert run("encode", "meshes") == 0
    lines = [json.loads(line) for line in Path("tokens.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["box", "deep/can", "deep/deeper/ball", "ring"]
    assert all(0 <= token < small_tokenizer().vocabulary.size for line in lines for token in line["tokens"])
    assert "encoded 4 of 4 into tokens.jsonl" in capsys.readouterr().err

    assert run("decode", "tokens.jsonl") == 0
    assert "decoded 4 of 4 into decoded" in capsys.readouterr().err
    for name, mesh in shapes().items():
        decoded = trimesh.load_mesh((Path("decoded") / name).with_suffix(".ply"))
        voxel = mesh.extents.max() / (0.95 * small_tokenizer().resolution)
        np.testing.assert_allclose(decoded.bounds, mesh.bounds, atol=1.5 * voxel, err_msg=name)
        assert decoded.volume == pytest.approx(mesh.volume, rel=0.15)


def test_a_line_may_be_renamed_and_added_to_but_its_shape_not_changed(here: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = small_tokenizer()
    line = json.loads(json_line("box", tokenizer.encode(trimesh.creation.box()), tokenizer))
    added = line | {"caption": "a box"}
    renamed = line | {"name": "crate"}
    moved = line | {"name": "moved", "scale": 2 * line["scale"]}
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, (added, renamed, moved))))
    assert run("decode", "lines.jsonl") == 1
    notes, rejected = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note", "rejected"))]
    assert notes == "note on lines.jsonl, line 2: 'crate' is not the name that it was written with"
    assert rejected.startswith('rejected lines.jsonl, line 3: its "digest" is not that of tokens, center, scale')
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["box.ply", "crate.ply"]


def test_what_is_written_is_what_the_tokenizer_says(here: Path):
    """Also through a table and npz files, and to the bit."""
    write_shapes(Path("meshes"))
    for out in ("tokens.parquet", "tokens"):
        assert run("encode", "meshes", "--out", out) == 0
        assert run("decode", out, "--out", f"from_{out}", "--format", "obj") == 0
    expected = small_tokenizer().encode(trimesh.load_mesh("meshes/deep/can.obj"))
    assert dict(read_parquet(Path("tokens.parquet")))["deep/can"] == expected
    assert Tokens.load("tokens/deep/can.npz") == expected
    assert tokens_of_json(json_line("can", expected, small_tokenizer()), small_tokenizer())[:2] == ("can", expected)
    decoded = Path("from_tokens/deep/can.obj").read_bytes()
    assert decoded == Path("from_tokens.parquet/deep/can.obj").read_bytes()


def test_good_files_are_encoded_and_bad_ones_listed(here: Path, capsys: pytest.CaptureFixture[str]):
    write_shapes(Path("meshes"))
    with Path("meshes/deep/can.obj").open("a") as file:
        file.write("\nl 1 2\n")
    reasons = write_bad_files(Path("meshes/bad"))
    Path("note.txt").write_text("not a mesh")
    Path("empty").mkdir()
    assert run("encode", "meshes", "missing.ply", "note.txt", "empty", "--out", "new/tokens.jsonl") == 1
    names = [json.loads(line)["name"] for line in Path("new/tokens.jsonl").read_text().splitlines()]
    assert names == ["box", "deep/can", "deep/deeper/ball", "ring"]

    errors = capsys.readouterr().err
    reasons = {f"meshes/bad/{name}": reason for name, reason in reasons.items()}
    reasons |= {
        "missing.ply": "there is no such file",
        "note.txt": "expected a file ending in .obj",
        "empty": "no file",
    }
    listed = dict(line.removeprefix("rejected ").split(": ", 1) for line in errors.splitlines() if "rejected" in line)
    assert listed.keys() == reasons.keys()
    for file, reason in reasons.items():
        assert any(part in listed[file] for part in reason.split("|")), (file, listed[file])
    assert "note on meshes/deep/can.obj: lines ignored: 1" in errors
    assert f"encoded 4 of 18 into new/tokens.jsonl, {sum_of_codes()} codes in all; 14 could not be used" in errors


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


def sum_of_codes() -> int:
    return sum(len(tokens) for tokens in map(small_tokenizer().encode, shapes().values()))


def test_names_that_collide_become_whole_paths(here: Path):
    trimesh.creation.icosphere().export("ball.ply")
    for folder in ("a", "b"):
        Path(folder).mkdir()
        trimesh.creation.icosphere().export(f"{folder}/ball.stl")
    assert run("encode", "a/ball.stl", "b", "ball.ply", "--out", "tokens.jsonl") == 0
    names = [json.loads(line)["name"] for line in Path("tokens.jsonl").read_text().splitlines()]
    assert names == [f"{str(here)[1:]}/{name}" for name in ("a/ball.stl", "b/ball.stl", "ball.ply")]
    assert run("decode", "tokens.jsonl") == 0
    assert (Path("decoded") / names[2]).with_name("ball.ply.ply").is_file()


def test_a_models_own_lines_decode_and_its_garbage_is_listed(here: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = small_tokenizer()
    tokens = tokenizer.encode(trimesh.creation.box((2, 1, 1)))
    sequence = tokenizer.to_sequence(tokens)
    framed = {"center": [5, 5, 5], "scale": 2.0}
    lines = {
        json.dumps({"tokens": sequence}): None,
        json.dumps({"name": "big", "tokens": sequence} | framed): None,
        "": None,
        json.dumps({"name": "cut", "tokens": sequence[:-3]}): r"it was cut short",
        json.dumps({"name": "none", "tokens": []}): r"the sequence is empty",
        json.dumps({"name": "big", "tokens": sequence}): r"the name 'big' was there before",
        json.dumps({"name": "../up", "tokens": sequence}): r"does not stay below a folder",
        json.dumps({"name": "/root", "tokens": sequence}): r"does not stay below a folder",
        json.dumps({"name": 3, "tokens": sequence}): r'"name" is int',
        json.dumps({"name": "half", "tokens": sequence, "scale": 1}): r'only one of "center" and "scale"',
        json.dumps({"name": "flat", "tokens": sequence, "center": [0, 0, 0], "scale": 0}): r"scale is 0; expected",
        json.dumps(
            {"name": "odd", "tokens": sequence, "center": "x", "scale": 1}
        ): r"center is x and scale 1; expected",
        json.dumps(
            {"name": "other", "tokens": sequence, "fingerprint": "0" * 16}
        ): r'its "digest" is not that of tokens, center',
        json.dumps({"name": "words", "tokens": "start end"}): r"not a list of integers",
        json.dumps({"name": "nothing"}): r'no JSON object with the key "tokens"',
        json.dumps([1, 2]): r'no JSON object with the key "tokens"',
        '{"tokens": [1, 2': r"it is no JSON",
        "[" * 100_000: r"it is no JSON",
    }
    Path("samples.jsonl").write_text("\n".join(lines))
    assert run("decode", "samples.jsonl", "--format", "glb") == 1

    errors = capsys.readouterr().err
    for number, message in enumerate(lines.values(), 1):
        line = [line for line in errors.splitlines() if line.startswith(f"rejected samples.jsonl, line {number}:")]
        assert len(line) == (message is not None), number
        assert message is None or message in line[0]
    assert "decoded 2 of 17 into decoded; 15 could not be used" in errors
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["big.glb", "samples-00001.glb"]
    in_cube, big = (trimesh.load_mesh(f"decoded/{name}.glb") for name in ("samples-00001", "big"))
    np.testing.assert_allclose(big.vertices, in_cube.vertices * 2 + 5, atol=1e-5)


def with_digest(fields: dict[str, Any]) -> str:
    content = {key: value for key, value in fields.items() if key != "name"}
    return json.dumps(fields | {"digest": digest_of([json.dumps(content)])})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("num_good", [10, pytest.param(990, marks=pytest.mark.slow)])
def test_a_bad_line_ends_no_decode(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, num_good: int
):
    tokenizer = small_tokenizer()
    sequence = tokenizer.to_sequence(tokenizer.encode(trimesh.creation.box((2, 0.3, 0.3))))
    full_grid = np.stack(np.indices((tokenizer.resolution // 8,) * 3), -1).reshape(-1, 3)
    vast = Tokens(full_grid, np.zeros(len(full_grid), np.int64), np.zeros(3), 1.0, tokenizer.fingerprint)
    bad = {
        json.dumps({"name": "n" * 300, "tokens": sequence}): "File name too long",
        json.dumps({"name": "\ud800", "tokens": sequence}): "is no text that can be written as UTF-8",
        json.dumps({"name": "good/0.ply/b", "tokens": sequence}): "no file can have the name 'good/0.ply/b' there",
        json.dumps({"name": "../../up", "tokens": sequence}): "does not stay below a folder",
        json.dumps({"name": "good/1", "tokens": sequence}): "was there before",
        json.dumps({"name": "nan", "tokens": sequence, "center": [0, float("nan"), 0], "scale": 1}): "finite numbers",
        json.dumps({"name": "swapped", "tokens": sequence[::-1]}): "position 0 of the sequence is end; expected start",
        with_digest({"name": "other", "tokens": sequence, "fingerprint": "0" * 16}): "come from tokenizer 0000",
        json.dumps({"name": "vast", "tokens": tokenizer.to_sequence(vast)}): "its 512 latent voxels takes about 0.1 GB",
        '{"name": "long", "tokens": [' + "1, " * 100_000: "after the first 200000 bytes of a line that is longer",
    }
    monkeypatch.setattr("model.cli.decode.free_memory", lambda: 4e7)
    monkeypatch.setattr("model.tokens.files.MAX_LINE", 200_000)
    good = [json.dumps({"name": f"good/{number}", "tokens": sequence}) for number in range(num_good)]
    Path("lines.jsonl").write_text("\n".join([*good[:2], *bad, *good[2:]]))
    assert run("decode", "lines.jsonl") == 1

    errors = capsys.readouterr().err
    listed = [line for line in errors.splitlines() if line.startswith("rejected ")]
    for number, (line, reason) in enumerate(zip(listed, bad.values(), strict=True), start=3):
        assert line.startswith(f"rejected lines.jsonl, line {number}: ")
        assert reason in line
        assert len(line) < 1100
    assert f"decoded {num_good} of {num_good + 10} into decoded; 10 could not be used, listed above" in errors
    assert {path.name for path in Path("decoded/good").iterdir()} == {f"{number}.ply" for number in range(num_good)}
    assert [path.name for path in Path("decoded").iterdir()] == ["good"]


# --- a data set ------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal
from model.cli import main
from model.tokens import Dataset
import model.tokens.dataset
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


@pytest.mark.parametrize(("center", "scale"), [((448262.125, 5411932.625, 312.5), 3.7), ((0.1, -0.2, 0.3), 1e-9)])
def test_far_and_tiny_meshes_are_written_as_they_are(here: Path, center: tuple[float, ...], scale: float):
    """What is read back is the mesh of `decode`, which is in float64, to 1e-6 of its size."""
    tokenizer = small_tokenizer()
    made = tokenizer.encode(ring_and_box())
    tokens = Tokens(made.coords, made.indices, np.array(center), scale, made.fingerprint)
    tokens.save("ring.npz")
    mesh = tokenizer.decode(tokens)
    size = np.ptp(mesh.vertices, axis=0).max()
    for suffix in ("ply", "glb", "obj"):
        assert run("decode", "ring.npz", "--format", suffix) == 0
        file = Path("decoded/ring").with_suffix(f".{suffix}")
        theirs = trimesh.load(file, process=False, force="mesh").vertices
        np.testing.assert_allclose(theirs, mesh.vertices, rtol=0, atol=1e-6 * size)
        ours = load_mesh(file)
        distances, _ = cKDTree((mesh.vertices - center) / scale).query((ours.vertices - center) / scale)
        assert distances.max() < 1e-6
        assert len(ours.faces) == pytest.approx(len(mesh.faces), rel=0.01)


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


def test_files_that_hold_no_tokens_are_listed(here: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.npz").write_bytes(b"PK")
    Path("b.parquet").write_bytes(b"PAR1")
    Path("c.txt").write_text("1 2 3")
    Path("empty").mkdir()
    assert run("decode", "a.npz", "b.parquet", "c.txt", "d.jsonl", "e.npz", "empty") == 1
    errors = capsys.readouterr().err
    for file, reason in {
        "a.npz": "can't be read",
        "b.parquet": "can't be read",
        "c.txt": "it is no .jsonl, .parquet or .npz file",
        "d.jsonl": "can't be read (No such file or directory)",
        "e.npz": "does not exist",
        "empty": "there is no .jsonl, .parquet or .npz file below it",
    }.items():
        assert any(line.startswith(f"rejected {file}: ") and reason in line for line in errors.splitlines()), file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "x.ply", "--tokenizer", "nowhere"], "nowhere: not a saved tokenizer"),
        (["encode", "x.ply", "--out", "tokens.csv"], "tokens.csv: tokens go to .jsonl, to .parquet or"),
        (["encode", "x.ply", "--format", "parquet"], "--out is tokens.jsonl; expected a folder for --format parquet"),
        (["encode", "x.ply", "--device", "abacus"], "--device is abacus; expected cpu or cuda"),
        pytest.param(
            ["encode", "x.ply", "--device", "cuda"],
            "there is no GPU that torch can use",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_what_cannot_begin_says_why_in_one_line(here: Path, arguments: list[str], message: str):
    with pytest.raises(SystemExit, match=message) as end:
        main(arguments)
    assert "\n" not in str(end.value.code)


def test_a_tokenizer_is_measured_on_any_meshes_and_two_are_compared(here: Path, capsys: pytest.CaptureFixture[str]):
    write_shapes(here / "meshes")
    (here / "meshes" / "bad.stl").write_text("solid nothing")
    meshes = ("--meshes", "meshes/box.glb", "--meshes", "meshes/deep", "--meshes", "meshes/bad.stl")
    evaluate = ("evaluate", "artifacts/tokenizer", *meshes, "--num-points", "3000", "--out")
    assert run(*evaluate, "mine") == 1
    captured = capsys.readouterr()
    assert "rejected meshes/bad.stl: " in captured.err
    assert "evaluated 3 of 4 meshes" in captured.err
    figures = json.loads((here / "mine/evaluate.json").read_text())
    assert captured.out.splitlines()[2].split()[-1] == "–"  # the grid has no tokens
    assert {row for row in figures if row in ROWS} == {"reference", "floor", "stage2"}

    tokenizer = ShapeTokenizer.from_pretrained("artifacts/tokenizer")
    mesh = load_mesh(here / "meshes/box.glb")
    decoded = tokenizer.decode(dataclasses.replace(tokenizer.encode(mesh), center=np.zeros(3), scale=1.0))
    truth = normalised_surface(mesh.vertices, mesh.faces)
    expected = compare(decoded, truth, num_points=3000, seed=0, with_iou=False)
    table = pd.read_parquet(here / "mine/per_shape.parquet").set_index(["shape", "row"])
    assert table.loc[("box", "stage2"), "cd_l1"] == pytest.approx(expected.cd_l1, rel=1e-6)
    assert table.loc[("box", "stage2"), "num_tokens"] == len(tokenizer.encode(mesh))

    assert run(*evaluate, "again") == 1
    for name in ("evaluate.json", "per_shape.parquet", "report.html"):
        assert (here / "mine" / name).read_bytes() == (here / "again" / name).read_bytes()
    capsys.readouterr()
    assert run("compare", "mine", "again") == 0
    assert "0 of 3" in capsys.readouterr().out


def test_a_shape_too_large_for_the_memory_is_listed_and_nothing_else_is_lost(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The evaluation is that of the others alone: the codes that the shape took before it failed do not count."""
    write_shapes(here / "meshes")
    small, large = "meshes/deep/can.obj", "meshes/box.glb"
    tokenizer = small_tokenizer()
    sizes = [len(tokenizer.encode(load_mesh(here / file))) for file in (small, large)]
    assert sizes[0] < sizes[1]
    decode = SparseSDFVAE.decode_in_parts

    def decode_if_it_fits(vae: SparseSDFVAE, z: SparseTensor) -> SparseTensor:
        if len(z.grid) > sizes[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return decode(vae, z)

    monkeypatch.setattr(SparseSDFVAE, "decode_in_parts", decode_if_it_fits)
    evaluate = ("evaluate", "artifacts/tokenizer", "--num-points", "500", "--meshes", small)
    assert run(*evaluate, "--out", "alone") == 0
    assert run(*evaluate, "--meshes", large, "--out", "both") == 1
    said = capsys.readouterr().err
    assert f"rejected {large}: there was not enough memory for it; simplify the mesh, or take --device cpu" in said
    assert "evaluated 1 of 2 meshes" in said
    for name in ("evaluate.json", "per_shape.parquet", "report.html"):
        assert (here / "both" / name).read_bytes() == (here / "alone" / name).read_bytes()
    assert run("evaluate", "artifacts/tokenizer", "--meshes", large, "--out", "none") == 1
    assert not (here / "none").exists()


def test_meshes_of_which_none_can_be_used_are_no_evaluation(here: Path):
    (here / "bad.stl").write_text("solid nothing")
    with pytest.raises(SystemExit, match="none of the 1 meshes could be used"):
        main(["evaluate", "artifacts/tokenizer", "--meshes", "bad.stl"])
    assert not (here / "evaluation").exists()


def test_wrong_arguments_end_with_2_and_help_with_examples(capsys: pytest.CaptureFixture[str]):
    assert run("encode", "x", "--dask", "tcp://h:1") == run("encode", "x", "--max-tokens", "0") == 2
    assert run() == run("melt") == run("encode") == run("decode", "x", "--format", "doc") == 2
    assert run("compare") == run("export-vae", "a", "b", "--layout", "spconf") == 2
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
