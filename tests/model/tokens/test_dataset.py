"""A data set's folder: what is written stays, what is left half-way is found, what is not ours is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset
import pytest

from model.errors import InputError
from model.tokens import Tokens, Vocabulary, open_dataset, read_tokens, row_of
from model.tokens.dataset import UNFINISHED
from tests.small_tokenizer import small_tokenizer


def row(name: str, content: str = "first") -> dict[str, Any]:
    """Of a shape of two voxels, whose frame tells name and content."""
    tokenizer = small_tokenizer()
    center = np.array([len(name), len(content), 1 / 3])
    tokens = Tokens(np.array([[0, 0, 1], [7, 7, 7]]), np.array([3, 255]), center, 0.1, tokenizer.fingerprint)
    made = row_of(name, tokens, tokenizer)
    return {**made, "length": len(made["tokens"]), "mesh_sha256": content}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("model.tokens.dataset.SHAPES_PER_SHARD", 2)


def test_every_column_says_what_it_is_and_every_row_is_read_back(tmp_path: Path):
    rows = [row(name) for name in ("a", "b/c", "d")]
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        dataset.append(rows)
        dataset.finish([])
    assert sorted(contents(tmp_path)) == ["tokens-00000.parquet", "tokens-00001.parquet"]
    table = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table()
    assert table.to_pylist() == rows
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert json.loads(metadata["columns"]).keys() == set(table.schema.names)
    assert metadata["tokenizer"] == small_tokenizer().fingerprint
    vocabulary = json.loads(metadata["vocabulary"])
    assert vocabulary.pop("size") == small_tokenizer().vocabulary.size
    described = Vocabulary(**vocabulary)
    assert described == small_tokenizer().vocabulary
    assert described.masks.shape[1] == described.size

    found = list(read_tokens(tmp_path, small_tokenizer()))
    assert [(shape.name, shape.note, shape.reason) for shape in found] == [(r["name"], "", "") for r in rows]
    for shape, written in zip(found, rows, strict=True):
        assert shape.tokens is not None
        assert row_of(shape.name, shape.tokens, small_tokenizer()).items() <= written.items()


def test_a_row_whose_shape_was_changed_is_refused_and_one_that_is_renamed_noted(tmp_path: Path):
    """As a user does it who filters and writes with other programs: the digest of the whole file is gone."""
    moved, renamed, other = row("a"), row("b"), row("c")
    moved["center"] = [0.0, 0.0, 0.0]
    renamed["name"] = "e"
    other["fingerprint"] = "0" * 16
    alone = {"tokens": row("d")["tokens"]}
    columns = {key: [r.get(key) for r in (moved, renamed, other, alone)] for key in moved}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "mine.parquet")
    first, second, third, fourth = read_tokens(tmp_path / "mine.parquet", small_tokenizer())
    assert 'its "digest" is not that of tokens, center, scale' in first.reason
    assert second.tokens is not None
    assert "'e' is not the name that it was written with" in second.note
    assert 'its "digest" is not' in third.reason
    assert (fourth.name, fourth.tokens and fourth.tokens.scale) == ("mine-00004", 1.0)


def test_a_changed_mesh_replaces_its_row_also_where_the_run_ends_before(tmp_path: Path):
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        dataset.append([row("a"), row("b"), row("c")])
        dataset.finish([])
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        assert dataset.has("a", "first")
        assert not dataset.has("a", "second")
        dataset.append([row("a", "second")])  # and is killed here
    (tmp_path / "tokens-mine.parquet").touch()  # no shard
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        assert dataset.has("a", "second")
        assert dataset.finish([], ["c"]) == 2  # whose file has changed too, and can't be read any more
    (tmp_path / "tokens-mine.parquet").unlink()
    rows = pyarrow.dataset.dataset(tmp_path, format="parquet").to_table().to_pylist()
    assert rows == [row("b"), row("a", "second")]
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        assert dataset.written.keys() == {"a", "b"}


def test_what_was_noted_is_found_up_to_the_line_that_was_cut_short(tmp_path: Path):
    folder = tmp_path / "set"
    rejected = {"name": "r", "mesh_sha256": "first", "reason": "it is flat"}
    with open_dataset(folder, small_tokenizer()) as dataset:
        for line in (row("a"), rejected, row("b")):
            dataset.note(line)
    journal = folder / UNFINISHED
    journal.write_bytes(journal.read_bytes()[:-9])
    first, *_ = read_tokens(folder, small_tokenizer())
    assert "interrupted there; run it again" in first.reason
    with open_dataset(folder, small_tokenizer()) as dataset:
        assert dataset.noted("a", "first") == row("a")
        assert dataset.noted("a", "second") is None
        noted = dataset.noted("r", "first")
        assert noted is not None
        assert noted.items() >= rejected.items()
        assert dataset.noted("b", "first") is None
        dataset.note(row("b"))
    with open_dataset(folder, small_tokenizer()) as dataset:
        assert dataset.noted("b", "first") == row("b")
        first, *_ = read_tokens(tmp_path, small_tokenizer())
        assert first.place == str(folder)
        dataset.finish(["b"])  # a run that was given other meshes
    assert not journal.exists()
    with open_dataset(folder, small_tokenizer()) as dataset:
        assert dataset.written.keys() == {"a"}


def test_what_is_not_this_tokenizers_or_not_whole_is_refused_and_left_as_it_is(tmp_path: Path):
    class Other:
        vocabulary, fingerprint = small_tokenizer().vocabulary, "f" * 16

    def refuses(message: str, tokenizer: Any = None) -> None:
        before = contents(tmp_path)
        with pytest.raises(InputError, match=message), open_dataset(tmp_path, tokenizer or small_tokenizer()):
            pass
        assert contents(tmp_path) == before

    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        dataset.note(row("a"))
        refuses("another process is adding to it; wait for its end")
    refuses(rf"\.unfinished is of tokenizer {small_tokenizer().fingerprint} but this is ffff", Other())
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        dataset.append([row("a"), row("b"), row("c")])
        dataset.finish([])
    refuses(r"tokens-00000\.parquet is of tokenizer .* but this is ffff.*; name another folder", Other())
    shard = tmp_path / "tokens-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    refuses(r"tokens-00001\.parquet can't be read .*; delete it and run encode again")
    shard.unlink()
    with open_dataset(tmp_path, small_tokenizer()) as dataset:
        assert dataset.written.keys() == {"a", "b"}
