"""shape-tokenizer evaluate and compare: a tokenizer measured on meshes that one has."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

from model.cli import main
from model.cli.commands import ROWS
from model.meshes import load_mesh
from model.metrics import compare
from model.sdf import normalised_surface
from model.sparse import SparseTensor
from model.tokenizer import ShapeTokenizer
from model.vae import SparseSDFVAE
from tests.model.cli.conftest import run, write_shapes
from tests.small_tokenizer import small_tokenizer


@pytest.mark.usefixtures("forked_workers")
def test_a_tokenizer_is_measured_on_any_meshes_and_two_are_compared(here: Path, capsys: pytest.CaptureFixture[str]):
    write_shapes(here / "meshes")
    (here / "meshes" / "bad.stl").write_text("solid nothing")
    meshes = ("--meshes", "meshes/box.glb", "--meshes", "meshes/deep", "--meshes", "meshes/bad.stl")
    evaluate = ("evaluate", *meshes, "--num-points", "3000", "--out")  # of the tokenizer that the environment names
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
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
    assert run("compare", "mine", "--rows", "floor", "stage2") == 0
    alone = capsys.readouterr().out
    assert run("compare", "mine", "mine", "--rows", "floor", "stage2") == 0
    assert "worse" in alone
    assert capsys.readouterr().out == alone


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_the_shipped_tokenizer_is_meant_where_none_is_named(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SHAPE_TOKENIZER")
    write_shapes(here / "meshes")
    assert run("evaluate", "--meshes", "meshes/box.glb", "--num-points", "500", "--out", "shipped") == 0
    table = pd.read_parquet(here / "shipped/per_shape.parquet").set_index("row")
    assert table.loc["stage2", "num_tokens"] == ShapeTokenizer.from_pretrained().encode("meshes/box.glb").indices.size


@pytest.mark.usefixtures("one_worker", "forked_workers")
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


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_a_mesh_that_encode_refuses_is_in_no_mean(here: Path, capsys: pytest.CaptureFixture[str]):
    """A board of a tenth of a voxel, wound outwards: a body, but no voxel is inside it."""
    trimesh.creation.box((1.0, 1.0, 0.003)).export("board.ply")
    assert run("encode", "board.ply", "--out", "board.jsonl") == 1
    assert "no voxel is inside it at resolution" in capsys.readouterr().err
    trimesh.creation.box().export("box.ply")
    meshes = ("--meshes", "box.ply", "--meshes", "board.ply")
    assert run("evaluate", "artifacts/tokenizer", *meshes, "--num-points", "500") == 1
    said = capsys.readouterr().err
    assert "rejected board.ply: no voxel is inside it at resolution" in said
    assert "evaluated 1 of 2 meshes" in said


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_meshes_of_which_none_can_be_used_are_no_evaluation(here: Path):
    (here / "bad.stl").write_text("solid nothing")
    with pytest.raises(SystemExit, match="none of the 1 meshes could be used"):
        main(["evaluate", "artifacts/tokenizer", "--meshes", "bad.stl"])
    assert not (here / "evaluation").exists()
