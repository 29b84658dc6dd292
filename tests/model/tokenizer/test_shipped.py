"""The tokenizer that comes with the library: whole, explained, and giving the tokens that it gave when it was made."""

from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
import yaml
from jaxtyping import Bool, Float, Int
from torch import Tensor

from model.metrics import compare
from model.quantizer import ResidualQuantizer
from model.sdf import normalised_surface
from model.sparse import from_arrays
from model.tokenizer import ShapeTokenizer
from model.tokenizer.tokenizer import shipped_tokenizer
from model.tokens import Tokens
from tests.shapes import ring_and_box

# Made anew, where other tokens are meant, by: .venv/bin/python -m tests.model.tokenizer.test_shipped
GOLDEN = Path(__file__).with_name("shipped_tokens.npz")
# A code that is farther than the nearest by no more than this share of the distance is a tie. Measured: computed by
# AVX-512, AVX2, SSE or MKL's most compatible code, on 1 or 2 threads, latents move by up to 1.03e-4 of it, and so the
# difference of two distances by up to twice as much. So near to a tie are 7 of the 4224 tokens here, 2 of a shape at
# most; none of these ways to compute decided one otherwise.
MARGIN = 2e-4
MAX_TIES = 2
DECODED = "chair"  # the shape whose decoded surface is golden too


def chair(*, legs_moved: float = 0.0) -> trimesh.Trimesh:
    box = trimesh.creation.box
    places = [(x + legs_moved, y, -0.5) for x in (-0.4, 0.4) for y in (-0.4, 0.4)]
    legs = [box((0.14, 0.14, 1.0)).apply_translation(place) for place in places]
    back = box((1.0, 0.12, 1.0)).apply_translation((0.0, 0.45, 0.5))
    return trimesh.util.concatenate([box((1.0, 1.0, 0.12)), *legs, back])


def shapes() -> dict[str, trimesh.Trimesh]:
    """Boxes and a ring, a tip, an open shell, a plate thinner than a voxel and a body with a corner cut out."""
    creation = trimesh.creation
    ball = creation.icosphere(subdivisions=3)
    outline = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 2), (0, 2)]
    return {
        "ring_and_box": ring_and_box(),
        "chair": chair(),
        "cone": creation.cone(radius=0.6, height=1.2),
        "bowl": ball.submesh([np.flatnonzero(ball.triangles_center[:, 2] < 0.2)], append=True),
        "plate": creation.box((1.0, 0.7, 0.01)),
        "corner": creation.extrude_triangulation(outline, [(0, 1, 2), (0, 2, 3), (0, 3, 4), (0, 4, 5)], 0.8),
    }


@cache
def tokenizer() -> ShapeTokenizer:
    return ShapeTokenizer.from_pretrained()


@cache
def tokens_of(name: str) -> Tokens:
    return tokenizer().encode(shapes()[name])


def make_golden() -> None:
    """The tokens of all shapes, and of the decoded surface what is compared."""
    arrays = {}
    for name in shapes():
        tokens = tokens_of(name)
        small = {"coords": tokens.coords.astype(np.uint8), "indices": tokens.indices.astype(np.uint16)}
        arrays |= {f"{name}.{key}": value for key, value in (vars(tokens) | small).items()}
    decoded = tokenizer().decode(tokens_of(DECODED))
    np.savez_compressed(GOLDEN, num_vertices=len(decoded.vertices), volume=decoded.volume, **arrays)


def golden_tokens(name: str) -> Tokens:
    with np.load(GOLDEN) as arrays:
        coords, indices = arrays[f"{name}.coords"].astype(np.int32), arrays[f"{name}.indices"].astype(np.int64)
        fingerprint = str(arrays[f"{name}.fingerprint"])
        return Tokens(coords, indices, arrays[f"{name}.center"], float(arrays[f"{name}.scale"]), fingerprint)


def ties(
    quantizer: ResidualQuantizer,
    latents: Float[Tensor, "num_latents dim"],
    found: Int[Tensor, "num_latents num_levels"],
    golden: Int[Tensor, "num_latents num_levels"],
) -> Bool[Tensor, " num_latents"]:
    """Which latents have another code that is as near as the golden one; AssertionError where one is nearer.

    Later levels of such a latent quantise another residual: they are not compared.
    """
    same = torch.ones(len(latents), dtype=torch.bool)
    residuals = quantizer.residuals(latents, found)
    for level, given, got, wanted in zip(quantizer.levels, residuals, found.T, golden.T, strict=True):
        to_got, to_wanted = ((given - level.codes_of(codes)).norm(dim=1) for codes in (got, wanted))
        moved = same & (got != wanted) & (to_wanted > to_got * (1 + MARGIN))
        assert not moved.any(), f"{int(moved.sum())} of {len(moved)} tokens have another code, which is no tie"
        same &= got == wanted
    return ~same


@torch.no_grad()
def check_tokens(by: ShapeTokenizer, mesh: trimesh.Trimesh, found: Tokens, golden: Tokens) -> None:
    np.testing.assert_array_equal(found.coords, golden.coords)
    if np.array_equal(found.indices, golden.indices):
        return
    grid = by.voxelize(mesh)
    z_e = by.vqvae.encode(from_arrays(grid.coords, grid.sdf, extent=by.resolution))
    latents = z_e.feats[z_e.grid.keys.argsort()]  # in C order, as tokens are
    codes = (torch.from_numpy(tokens.by_level) for tokens in (found, golden))
    assert int(ties(by.vqvae.quantizer, latents, *codes).sum()) <= MAX_TIES


@pytest.mark.parametrize("name", list(shapes()))
def test_a_shape_gets_the_tokens_that_it_had(name: str):
    found, golden = tokens_of(name), golden_tokens(name)
    assert found.fingerprint == golden.fingerprint
    np.testing.assert_allclose([*found.center, found.scale], [*golden.center, golden.scale], rtol=1e-12, atol=1e-12)
    check_tokens(tokenizer(), shapes()[name], found, golden)


def test_tokens_give_the_surface_that_they_gave():
    decoded = tokenizer().decode(golden_tokens(DECODED))
    with np.load(GOLDEN) as golden:
        assert len(decoded.vertices) == pytest.approx(int(golden["num_vertices"]), rel=1e-3)
        assert decoded.volume == pytest.approx(float(golden["volume"]), rel=1e-4)


def test_a_tie_is_counted_and_what_follows_it_is_not_compared():
    quantizer = ResidualQuantizer.of([torch.tensor([[1.0], [-1.0], [3.0]]), torch.tensor([[1.0], [-1.0]])])
    latents = torch.tensor([[1e-5], [2.1], [0.5], [1.0]])  # nearly a tie in level 1, none, none, a tie in level 2
    found = quantizer.indices_of(latents)
    np.testing.assert_array_equal(found, [[0, 1], [2, 1], [0, 1], [0, 0]])
    assert ties(quantizer, latents, found, found).tolist() == [False] * 4
    golden = torch.tensor([[1, 0], [2, 1], [0, 1], [0, 1]])
    assert ties(quantizer, latents, found, golden).tolist() == [True, False, False, True]
    for row, codes in ((1, [0, 0]), (2, [0, 0])):
        golden[row] = torch.tensor(codes)
        with pytest.raises(AssertionError, match="1 of 4 tokens have another code"):
            ties(quantizer, latents, found, golden)
        golden[row] = found[row]


@pytest.mark.parametrize("change", ["weight", "mesh"])
def test_a_small_change_is_seen(change: str):
    """A single weight of the encoder larger by a hundredth, or the chair's legs moved by a tenth of a voxel."""
    changed, mesh = tokenizer(), chair()
    if change == "weight":
        changed = ShapeTokenizer(deepcopy(changed.vqvae), **changed.grid_options)
        weights = changed.vqvae.vae.encoder.input_layer1.weight.data.view(-1)
        weights[weights.abs().argmax()] *= 1.01
    else:
        voxel = 2 / changed.resolution * tokens_of("chair").scale
        mesh = chair(legs_moved=voxel / 10)
    with pytest.raises(AssertionError, match="tokens have another code"):
        check_tokens(changed, mesh, changed.encode(mesh), golden_tokens("chair"))


@pytest.mark.parametrize("name", ["ring_and_box", "chair"])
def test_a_shape_comes_back(name: str):
    """Within a voxel, on average."""
    mesh, tokens = shapes()[name], tokens_of(name)
    surface = normalised_surface(mesh.vertices, mesh.faces)
    decoded = tokenizer().decode(tokens)
    in_cube = trimesh.Trimesh((decoded.vertices - tokens.center) / tokens.scale, decoded.faces, process=False)
    found = compare(in_cube, surface, num_points=10_000, seed=0)
    assert found.cd_l1 < 2 / tokenizer().resolution


def test_its_card_says_where_it_is_from():
    folder = shipped_tokenizer()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    card = (folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "mit"
    assert tokenizer().fingerprint in card
    for part in ("## Figures", "## Training", "## Meshes"):
        assert part in card


if __name__ == "__main__":
    make_golden()
