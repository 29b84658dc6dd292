"""evaluate measures the product: its last row is the mesh that ShapeTokenizer gives."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh

from model.evaluation import CodeUse, Reconstructor, Sampling, TrueShape, measure_shapes
from model.quantizer import ResidualQuantizer
from model.report import Gallery
from model.sdf import normalised_surface
from model.sparse import SparseTensor, tensor
from model.vqvae import unquantized
from tests.shapes import ring_and_box
from tests.small_tokenizer import small_tokenizer

CPU = torch.device("cpu")


def test_the_row_of_stage_2_is_what_the_tokenizer_decodes():
    tokenizer = small_tokenizer()
    mesh = ring_and_box().apply_scale(2.0).apply_translation([1, 2, 3])
    *_, row = Reconstructor({"stage2": tokenizer.vqvae}, CPU).rows(tokenizer.voxelize(mesh))
    tokens = tokenizer.encode(mesh)
    decoded = tokenizer.decode(dataclasses.replace(tokens, center=np.zeros(3), scale=1.0))
    assert (row.row, row.num_tokens) == ("stage2", len(tokens))
    assert len(decoded.faces) > 1000
    np.testing.assert_array_equal(decoded.faces, row.mesh.faces)
    np.testing.assert_array_equal(decoded.vertices, row.mesh.vertices)


def test_every_row_pays_for_finding_its_own_neighbours(monkeypatch: pytest.MonkeyPatch):
    """Rows work on the same voxels; one that found them known would look cheaper than it is."""
    searched: list[int] = []
    search = tensor.find_neighbours

    def watched(coords: torch.Tensor, **options: int) -> torch.Tensor:
        searched.append(len(coords))
        return search(coords, **options)

    monkeypatch.setattr(tensor, "find_neighbours", watched)
    tokenizer = small_tokenizer()
    shape = tokenizer.voxelize(trimesh.creation.box())
    networks = {"vae": unquantized(tokenizer.vqvae.vae), "stage2": tokenizer.vqvae}
    rows = Reconstructor(networks, CPU).rows(shape)
    of_row = []
    for _ in rows:
        of_row.append(sorted(searched))
        searched.clear()
    floor, vae, stage2 = of_row
    assert floor == []
    assert vae == stage2  # encoder and decoder
    assert len(vae) > 2


def test_the_order_in_which_shapes_come_changes_no_bit(tmp_path: Path):
    """As they do from several processes."""
    tokenizer = small_tokenizer()
    creation = trimesh.creation
    meshes = {"ball": creation.icosphere(2), "box": creation.box((1.8, 1.2, 0.5)), "can": creation.cylinder(0.4, 1.5)}
    shapes = [
        TrueShape(name, tokenizer.voxelize(mesh), normalised_surface(mesh.vertices, mesh.faces))
        for name, mesh in meshes.items()
    ]
    sampling = Sampling(200, (0.01,), seed=0)
    found = []
    for order in (shapes, shapes[::-1]):
        reconstructor = Reconstructor({"stage2": tokenizer.vqvae}, CPU)
        scratch = tmp_path / order[0].name
        scratch.mkdir()
        measured = measure_shapes(order, 3, reconstructor, sampling, Gallery(scratch, rows=()))
        table = measured.table
        assert [(cost["shape"], cost["row"]) for cost in measured.costs] == [
            *zip(table["shape"], table.row, strict=True)
        ]
        found.append((table, reconstructor.use["stage2"].normalised_error))
    (table, error), (reversed_table, reversed_error) = found
    pd.testing.assert_frame_equal(table, reversed_table, check_exact=True)
    assert error == reversed_error


def test_code_use_against_a_count_by_hand():
    codebook = torch.tensor([[0.0], [1.0], [9.0]])
    use = CodeUse(ResidualQuantizer.of([codebook]))
    coords = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.int32)
    z = torch.tensor([[0.1], [0.9], [1.2], [-0.1]])
    use.quantize(SparseTensor(coords, z + 7))  # of a shape that fails, and does not count
    assert use.quantize(SparseTensor(coords, z)).feats.flatten().tolist() == [0, 1, 1, 0]
    use.count("ball")
    assert use.quantizer.bits == pytest.approx(np.log2(3))
    assert [counts.tolist() for counts in use.counts] == [[2, 2, 0]]
    assert use.normalised_error == pytest.approx(np.mean([0.01, 0.01, 0.04, 0.01]) / np.var(z.numpy()))
