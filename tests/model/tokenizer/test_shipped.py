"""The tokenizer that comes with the library: whole, explained, and giving the tokens that it gave when it was made."""

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
import yaml

from model.metrics import compare
from model.sdf import normalised_surface
from model.tokenizer import ShapeTokenizer
from model.tokenizer.tokenizer import shipped_tokenizer
from tests.shapes import ring_and_box

GOLDEN = Path(__file__).with_name("shipped_tokens.json")  # a sequence a shape
MAX_TIES = 0.01  # share of codes that rounding may decide otherwise on another machine


@pytest.fixture(scope="module")
def tokenizer() -> ShapeTokenizer:
    return ShapeTokenizer.from_pretrained()


def shapes() -> dict[str, trimesh.Trimesh]:
    creation = trimesh.creation
    seat = creation.box((1.0, 1.0, 0.12))
    legs = [creation.box((0.14, 0.14, 1.0)).apply_translation((x, y, -0.5)) for x in (-0.4, 0.4) for y in (-0.4, 0.4)]
    back = creation.box((1.0, 0.12, 1.0)).apply_translation((0.0, 0.45, 0.5))
    return {
        "ring_and_box": ring_and_box(),
        "chair": trimesh.util.concatenate([seat, *legs, back]),
        "cone": creation.cone(radius=0.6, height=1.2),
    }


@pytest.mark.parametrize("name", list(shapes()))
def test_a_shape_gets_the_tokens_that_it_had(tokenizer: ShapeTokenizer, name: str):
    got, wanted = tokenizer.encode(shapes()[name]), tokenizer.from_sequence(json.loads(GOLDEN.read_text())[name])
    np.testing.assert_array_equal(got.coords, wanted.coords)
    assert (got.indices != wanted.indices).mean() <= MAX_TIES


@pytest.mark.parametrize("name", list(shapes()))
def test_a_shape_comes_back(tokenizer: ShapeTokenizer, name: str):
    """Within a voxel, on average."""
    mesh = shapes()[name]
    surface = normalised_surface(mesh.vertices, mesh.faces)
    tokens = tokenizer.encode(mesh)
    decoded = tokenizer.decode(tokens)
    in_cube = trimesh.Trimesh((decoded.vertices - tokens.center) / tokens.scale, decoded.faces, process=False)
    found = compare(in_cube, surface, num_points=10_000, seed=0)
    assert found.cd_l1 < 2 / tokenizer.resolution


def test_its_card_says_where_it_is_from(tokenizer: ShapeTokenizer):
    folder = shipped_tokenizer()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert tokenizer.fingerprint in card
    for part in ("## Figures", "## Training", "## Meshes"):
        assert part in card
