"""shape-tokenizer decode: lines of a model and tokens of files in, meshes and listings out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from model.files import digest_of
from model.meshes import load_mesh
from model.tokens import Tokens, write_tokens
from model.tokens.files import json_line
from tests.model.cli.conftest import run
from tests.shapes import ring_and_box
from tests.small_tokenizer import small_tokenizer


def test_a_line_may_be_renamed_and_added_to_but_its_shape_not_changed(here: Path, capsys: pytest.CaptureFixture[str]):
    tokenizer = small_tokenizer()
    line = json.loads(json_line("box", tokenizer.encode(trimesh.creation.box()), tokenizer))
    added = line | {"caption": "a box", "picture": f"sha256:{'0' * 64}"}
    del added["name_digest"]
    renamed = line | {"name": "crate"}
    moved = line | {"name": "moved", "scale": 2 * line["scale"]}
    Path("lines.jsonl").write_text("\ufeff" + "\n".join(map(json.dumps, (added, renamed, moved))))
    assert run("decode", "lines.jsonl") == 1
    notes, rejected = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("note", "rejected"))]
    assert notes == "note on lines.jsonl, line 2: 'crate' is not the name that it was written with"
    assert rejected.startswith('rejected lines.jsonl, line 3: its "digest" is not that of tokens, center, scale')
    assert sorted(path.name for path in Path("decoded").iterdir()) == ["box.ply", "crate.ply"]


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
        with_digest({"name": "other", "tokens": [10**6], "fingerprint": "0" * 16}): "come from tokenizer 0000",
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


def test_files_that_hold_no_tokens_are_listed(here: Path, capsys: pytest.CaptureFixture[str]):
    Path("a.npz").write_bytes(b"PK")
    Path("b.parquet").write_bytes(b"PAR1")
    Path("c.txt").write_text("1 2 3")
    Path("empty").mkdir()
    Path("f.jsonl").write_text("\n")
    write_tokens(Path("g.parquet"), [], small_tokenizer())
    assert run("decode", "a.npz", "b.parquet", "c.txt", "d.jsonl", "e.npz", "empty", "f.jsonl", "g.parquet") == 1
    errors = capsys.readouterr().err
    for file, reason in {
        "a.npz": "can't be read",
        "b.parquet": "can't be read",
        "c.txt": "it is no .jsonl, .parquet or .npz file",
        "d.jsonl": "can't be read (No such file or directory)",
        "e.npz": "does not exist",
        "empty": "there is no .jsonl, .parquet or .npz file below it",
        "f.jsonl": "there is no shape in it",
        "g.parquet": "there is no shape in it",
    }.items():
        assert any(line.startswith(f"rejected {file}: ") and reason in line for line in errors.splitlines()), file
