import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from model.errors import InputError
from model.quantizer import VectorQuantizer
from model.receptive_field import DecodePlan
from model.sparse import SparseTensor
from model.tokenizer import ShapeTokenizer, Tokens
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE
from tests.shapes import as_target, ring_and_box, voxelized

RESOLUTION = 32


@torch.no_grad()
def tokenizer_of(seed: int = 0) -> ShapeTokenizer:
    """Of random weights, half of whose decoded values are negative: its meshes are rubbish, but they are there."""
    torch.manual_seed(seed)
    vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=8))
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    torch.nn.init.normal_(vae.decoder.out_layer.weight)
    quantizer = VectorQuantizer(64, 8)
    torch.nn.init.normal_(quantizer.codebook)
    vqvae = VQVAE(vae, quantizer)
    decoded = vqvae(as_target(voxelized(ring_and_box())).band).decoded.feats
    vae.decoder.out_layer.bias -= torch.atanh(decoded.median())
    return ShapeTokenizer(vqvae, resolution=RESOLUTION, truncation_voxels=2.0)


@pytest.fixture(scope="module")
def tokenizer() -> ShapeTokenizer:
    return tokenizer_of()


@pytest.fixture(scope="module")
def tokens(tokenizer: ShapeTokenizer) -> Tokens:
    return tokenizer.encode(ring_and_box())


def assert_same(first: Tokens, second: Tokens) -> None:
    np.testing.assert_array_equal(first.coords, second.coords)
    np.testing.assert_array_equal(first.indices, second.indices)
    np.testing.assert_array_equal(first.center, second.center)
    assert (first.scale, first.fingerprint) == (second.scale, second.fingerprint)


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_one_token_per_occupied_brick_in_c_order(tokens: Tokens):
    bricks = np.unique(voxelized(ring_and_box()).coords // 8, axis=0)  # sorted, in C order
    np.testing.assert_array_equal(tokens.coords, bricks)
    assert len(tokens) == len(tokens.indices) == len(bricks)
    assert tokens.coords.dtype == np.int32
    assert tokens.indices.dtype == np.int64
    assert 0 <= tokens.indices.min() <= tokens.indices.max() < 64


def test_tokens_are_the_same_every_time(tokenizer: ShapeTokenizer, tokens: Tokens):
    assert len(set(tokens.indices.tolist())) > 1
    assert_same(tokenizer.encode(ring_and_box()), tokens)


def test_a_grid_gives_the_tokens_of_its_mesh(tokenizer: ShapeTokenizer, tokens: Tokens):
    assert_same(tokenizer.encode(voxelized(ring_and_box())), tokens)


def test_moving_and_scaling_a_mesh_changes_only_the_affine(tokenizer: ShapeTokenizer, tokens: Tokens):
    mesh = ring_and_box()
    mesh.apply_scale(4.0)  # powers of two and whole numbers: no rounding
    mesh.apply_translation([16.0, -8.0, 64.0])
    moved = tokenizer.encode(mesh)
    np.testing.assert_array_equal(moved.coords, tokens.coords)
    np.testing.assert_array_equal(moved.indices, tokens.indices)
    assert moved.scale == pytest.approx(4 * tokens.scale)
    np.testing.assert_allclose(moved.center, 4 * tokens.center + [16, -8, 64], atol=1e-6)


# --- back to a mesh --------------------------------------------------------------------------------------------------


def test_a_mesh_comes_back_in_its_own_frame(tokenizer: ShapeTokenizer):
    here = tokenizer.reconstruct(ring_and_box())
    mesh = ring_and_box()
    mesh.apply_scale(4.0)
    mesh.apply_translation([16.0, -8.0, 64.0])
    there = tokenizer.reconstruct(mesh)
    assert len(here.faces) > 0
    np.testing.assert_array_equal(there.faces, here.faces)
    np.testing.assert_allclose(there.vertices, 4 * here.vertices + [16, -8, 64], atol=1e-4)


def test_the_surface_lies_in_the_bricks_of_the_tokens(tokenizer: ShapeTokenizer, tokens: Tokens):
    mesh = tokenizer.decode(tokens)
    in_cube = (mesh.vertices - tokens.center) / tokens.scale
    in_bricks = (in_cube + 1) / 2 * RESOLUTION / 8
    distance = np.abs(in_bricks[:, None] - (tokens.coords + 0.5)).max(2).min(1)  # to the nearest brick's centre
    assert len(mesh.faces) > 100
    assert distance.max() <= 0.5 + 1e-6


class PerfectDecoder(torch.nn.Module):
    """Stands where a trained decoder would: the true values of one shape, whatever the latents."""

    def __init__(self, mesh: trimesh.Trimesh):
        super().__init__()
        shape = voxelized(mesh)
        coords, sign = shape.beyond()
        coords, values = np.concatenate([shape.coords, coords]), np.concatenate([shape.sdf, sign])
        self.values = {tuple(c): v for c, v in zip(coords.tolist(), values.tolist(), strict=True)}

    def forward(self, z: SparseTensor, plan: DecodePlan | None = None) -> SparseTensor:
        children = z.grid.subdivided.subdivided.subdivided
        return SparseTensor.on(
            children, torch.tensor([[self.values[tuple(c)]] for c in children.coords[:, 1:].tolist()])
        )


def test_with_a_perfect_decoder_a_sphere_keeps_radius_and_place():
    sphere = trimesh.creation.icosphere(subdivisions=4, radius=3.0)
    sphere.apply_translation([10.0, 20.0, -5.0])
    tokenizer = tokenizer_of()
    tokenizer.vqvae.vae.decoder = PerfectDecoder(sphere)
    mesh = tokenizer.reconstruct(sphere)
    radius = np.linalg.norm(mesh.vertices - [10, 20, -5], axis=1)
    voxel = 2 / RESOLUTION * 3 / 0.95
    np.testing.assert_allclose(radius, 3.0, atol=0.05 * voxel)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(sphere.volume, rel=0.01)  # positive: normals outward


# --- save and load ---------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_gives_the_same_tokens_and_the_same_mesh(
    tokenizer: ShapeTokenizer, tokens: Tokens, tmp_path: Path
):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = ShapeTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (loaded.resolution, loaded.truncation_voxels) == (RESOLUTION, 2.0)
    assert_same(loaded.encode(ring_and_box()), tokens)
    np.testing.assert_array_equal(loaded.decode(tokens).vertices, tokenizer.decode(tokens).vertices)


def test_tokens_survive_as_plain_numbers(tokenizer: ShapeTokenizer, tokens: Tokens):
    text = json.dumps(vars(tokens), default=np.ndarray.tolist)
    fields = json.loads(text)
    back = Tokens(
        np.array(fields["coords"], np.int32),
        np.array(fields["indices"]),
        np.array(fields["center"]),
        fields["scale"],
        fields["fingerprint"],
    )
    assert_same(back, tokens)
    np.testing.assert_array_equal(tokenizer.decode(back).vertices, tokenizer.decode(tokens).vertices)


def test_the_order_of_tokens_means_nothing(tokenizer: ShapeTokenizer, tokens: Tokens):
    order = np.random.default_rng(0).permutation(len(tokens))
    shuffled = dataclasses.replace(tokens, coords=tokens.coords[order], indices=tokens.indices[order])
    got, expected = tokenizer.decode(shuffled), tokenizer.decode(tokens)
    assert len(got.vertices) == len(expected.vertices)
    np.testing.assert_allclose(np.sort(got.vertices, 0), np.sort(expected.vertices, 0), atol=1e-3)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_tokens_of_another_codebook_are_refused(tokens: Tokens):
    other = tokenizer_of(seed=1)
    message = f"tokens come from tokenizer {tokens.fingerprint} but this is {other.fingerprint}"
    with pytest.raises(InputError, match=message):
        other.decode(tokens)


@pytest.mark.parametrize("part", ["vae.encoder.out_layer.bias", "vae.decoder.out_layer.bias", "quantizer.codebook"])
def test_any_other_weight_makes_another_tokenizer(part: str):
    other = tokenizer_of(seed=0)
    same = other.fingerprint
    assert tokenizer_of(seed=0).fingerprint == same
    with torch.no_grad():
        changed = tokenizer_of(seed=0)
        dict(changed.vqvae.named_parameters())[part].view(-1)[0] += 1e-3
    assert changed.fingerprint != same
    coarser = ShapeTokenizer(other.vqvae, resolution=other.resolution * 2, truncation_voxels=other.truncation_voxels)
    assert coarser.fingerprint != same


def test_a_grid_of_another_resolution_is_refused(tokenizer: ShapeTokenizer):
    with pytest.raises(InputError, match=r"grid has resolution 64.*trained at 32.*voxelise it again"):
        tokenizer.encode(voxelized(ring_and_box(), resolution=64))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="not a saved tokenizer"):
        ShapeTokenizer.from_pretrained(tmp_path)


def test_a_damaged_folder_is_refused(tokenizer: ShapeTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="not a saved tokenizer"):
        ShapeTokenizer.from_pretrained(tmp_path)


def test_a_config_that_does_not_fit_the_weights_is_refused(tokenizer: ShapeTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed in (config | {"codebook": {"size": 63, "dim": 8}}, config | {"vae": {}}, {"resolution": 32}):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match="not a saved tokenizer"):
            ShapeTokenizer.from_pretrained(tmp_path)
