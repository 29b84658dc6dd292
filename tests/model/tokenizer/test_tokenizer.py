"""Meshes to tokens and back: what tokens are, what they do not depend on, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from model.errors import InputError
from model.meshes import load_mesh
from model.sdf import extract_mesh
from model.sparse import Grid, SparseTensor
from model.tokenizer import ShapeTokenizer, decoded_surface
from model.tokens import Tokens
from model.vae import DecodePlan
from tests.model.tokenizer.conftest import RESOLUTION, tokenizer_of
from tests.shapes import ring_and_box, voxelized

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
    assert tokenizer.encode(ring_and_box()) == tokens


def test_a_grid_gives_the_tokens_of_its_mesh(tokenizer: ShapeTokenizer, tokens: Tokens):
    assert tokenizer.encode(voxelized(ring_and_box())) == tokens


def test_moving_and_scaling_a_mesh_changes_only_the_affine(tokenizer: ShapeTokenizer, tokens: Tokens):
    mesh = ring_and_box()
    mesh.apply_scale(4.0)  # powers of two and whole numbers: no rounding
    mesh.apply_translation([16.0, -8.0, 64.0])
    moved = tokenizer.encode(mesh)
    np.testing.assert_array_equal(moved.coords, tokens.coords)
    np.testing.assert_array_equal(moved.indices, tokens.indices)
    assert moved.scale == pytest.approx(4 * tokens.scale)
    np.testing.assert_allclose(moved.center, 4 * tokens.center + [16, -8, 64], atol=1e-6)


def assert_same_mesh(first: trimesh.Trimesh, second: trimesh.Trimesh) -> None:
    assert len(first.faces) > 0
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.faces, second.faces)


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
        children = z.grid.subdivided(3)
        return SparseTensor.on(
            children, torch.tensor([[self.values[tuple(c)]] for c in children.coords[:, 1:].tolist()])
        )


def test_the_surface_of_a_decoded_field_is_that_of_its_voxels(tokenizer: ShapeTokenizer):
    """In any order, and of whatever voxels there are."""
    latents = Grid(torch.tensor([[0, 0, 0, 0], [0, 1, 0, 2], [0, 1, 1, 2], [0, 3, 3, 3]], dtype=torch.int32))
    children = latents.subdivided(3).coords
    chosen = torch.randperm(len(children), generator=torch.Generator().manual_seed(0))[:1800]  # of 2048
    decoded = SparseTensor(children[chosen], torch.randn(1800, 1, generator=torch.Generator().manual_seed(1)))
    surface = decoded_surface(decoded, latents, resolution=RESOLUTION)
    expected = extract_mesh(decoded.coords[:, 1:].numpy(), decoded.feats[:, 0].numpy(), resolution=RESOLUTION)
    assert len(expected.faces) > 100
    np.testing.assert_array_equal(surface.vertices, expected.vertices)
    np.testing.assert_array_equal(surface.faces, expected.faces)


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


def test_the_order_of_tokens_means_nothing(tokenizer: ShapeTokenizer, tokens: Tokens):
    order = np.random.default_rng(0).permutation(len(tokens))
    shuffled = dataclasses.replace(tokens, coords=tokens.coords[order], indices=tokens.indices[order])
    assert shuffled != tokens
    assert shuffled.in_c_order() == tokens
    assert_same_mesh(tokenizer.decode(shuffled), tokenizer.decode(tokens))


# --- many at once, and on any machine --------------------------------------------------------------------------------


def test_a_batch_gives_each_shape_its_own_tokens(tokenizer: ShapeTokenizer):
    shapes = [ring_and_box(), trimesh.creation.icosphere(), voxelized(trimesh.creation.box((1, 2, 3)))]
    alone = [tokenizer.encode(shape) for shape in shapes]
    assert tokenizer.encode_batch(shapes) == alone
    assert tokenizer.encode_batch(shapes[::-1]) == alone[::-1]
    assert len({len(tokens) for tokens in alone}) == 3
    assert tokenizer.encode_batch([]) == []


def test_tokens_do_not_depend_on_the_number_of_threads(tokenizer: ShapeTokenizer, tokens: Tokens):
    assert len(set(tokens.indices.tolist())) > 1
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            assert tokenizer.encode(ring_and_box()) == tokens
    finally:
        torch.set_num_threads(threads)


def test_autocast_does_not_reach_the_tokens(tokenizer: ShapeTokenizer, tokens: Tokens):
    with torch.autocast("cpu", torch.bfloat16):
        assert tokenizer.encode(ring_and_box()) == tokens


# --- the flat sequence -----------------------------------------------------------------------------------------------


def test_a_mesh_survives_the_sequence_to_the_bit(tokenizer: ShapeTokenizer, tokens: Tokens):
    sequence = tokenizer.to_sequence(tokens)
    assert max(sequence) < tokenizer.vocabulary.size == 64 + 255 + 2 + 2  # codes, occupancies, start and end, levels
    back = tokenizer.from_sequence(json.loads(json.dumps(sequence)), center=tokens.center, scale=tokens.scale)
    assert back == tokens
    assert_same_mesh(tokenizer.decode(back), tokenizer.decode(tokens))


def test_a_sequence_alone_decodes_in_the_cube(tokenizer: ShapeTokenizer, tokens: Tokens):
    in_cube = tokenizer.decode(tokenizer.from_sequence(tokenizer.to_sequence(tokens)))
    assert np.abs(in_cube.vertices).max() <= 1
    there = tokenizer.decode(tokens)
    np.testing.assert_array_equal(there.vertices, in_cube.vertices * tokens.scale + tokens.center)
    np.testing.assert_array_equal(there.faces, in_cube.faces)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_tokens_of_another_codebook_are_refused(tokens: Tokens):
    other = tokenizer_of(seed=1)
    message = f"tokens come from tokenizer {tokens.fingerprint} but this is {other.fingerprint}"
    with pytest.raises(InputError, match=message):
        other.decode(tokens)


@pytest.mark.parametrize(
    "part", ["vae.encoder.out_layer.bias", "vae.decoder.out_layer.bias", "quantizer.levels.0.codebook"]
)
def test_any_other_weight_makes_another_tokenizer(part: str):
    other = tokenizer_of(seed=0)
    same = other.fingerprint
    assert tokenizer_of(seed=0).fingerprint == same
    with torch.no_grad():
        changed = tokenizer_of(seed=0)
        dict(changed.vqvae.named_parameters())[part].view(-1)[0] += 1e-3
    assert changed.fingerprint != same
    coarser = ShapeTokenizer(other.vqvae, **other.grid_options | {"resolution": other.resolution * 2})
    assert coarser.fingerprint != same


def test_a_grid_of_another_resolution_is_refused(tokenizer: ShapeTokenizer):
    with pytest.raises(InputError, match=r"grid has resolution 64.*trained at 32.*voxelise it again"):
        tokenizer.encode(voxelized(ring_and_box(), resolution=64))


def test_what_are_no_tokens_is_refused(tokenizer: ShapeTokenizer, tokens: Tokens):
    for wrong in (tokenizer.to_sequence(tokens), "chair.npz"):
        for refuse in (tokenizer.decode, tokenizer.to_sequence):
            with pytest.raises(InputError, match=r"^got (list|str); expected Tokens; make them by"):
                refuse(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indices": lambda tokens: tokens.indices + 63}, r"indices are outside the codebook.*expected 0 to 63"),
        ({"coords": lambda tokens: tokens.coords + 2}, r"latent voxels are outside the grid.*expected 0 to 3"),
        ({"coords": lambda tokens: tokens.coords // 2}, r"latent voxels are there more than once"),
        ({"fingerprint": lambda tokens: "another"}, r"tokens come from tokenizer another"),
    ],
)
def test_tokens_that_are_not_of_this_tokenizer_are_refused(
    tokenizer: ShapeTokenizer, tokens: Tokens, change: dict, message: str
):
    wrong = dataclasses.replace(tokens, **{name: made_from(tokens) for name, made_from in change.items()})
    for refuse in (tokenizer.decode, tokenizer.to_sequence):
        with pytest.raises(InputError, match=message):
            refuse(wrong)


def test_shapes_that_have_no_tokens_are_refused(tokenizer: ShapeTokenizer):
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(InputError, match=r"no voxel is inside it at resolution 32; expected a body"):
        tokenizer.encode(sheet)
    with pytest.raises(InputError, match=r"the mesh has no faces"):
        tokenizer.encode(trimesh.Trimesh(np.zeros((3, 3)), np.zeros((0, 3), int), process=False))
    with pytest.raises(InputError, match=r"all 1 faces lie in one point"):
        tokenizer.encode(trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False))
    with pytest.raises(InputError, match=r"got Scene; expected .*trimesh.Trimesh or SparseSDF"):
        tokenizer.encode(trimesh.Scene([ring_and_box()]))


def test_a_file_is_read_as_voxelize_reads_it(tokenizer: ShapeTokenizer, tmp_path: Path):
    """A concave polygon, which other readers cut from its first corner, is what it is in every format."""
    outline = [(0, 0), (3, 0), (3, 1), (1, 1), (1, 3), (3, 3), (3, 4), (0, 4)]
    lines = [f"v {x} {y} {z}" for z in (0, 2) for x, y in outline]
    lines += ["f 8 7 6 5 4 3 2 1", "f 9 10 11 12 13 14 15 16"]
    lines += [f"f {i + 1} {(i + 1) % 8 + 1} {(i + 1) % 8 + 9} {i + 9}" for i in range(8)]
    path = tmp_path / "c.obj"
    path.write_text("\n".join(lines))
    mesh = load_mesh(path)
    tokens = tokenizer.encode(path)
    assert tokens == tokenizer.encode(str(path)) == tokenizer.encode(mesh)
    assert tokens == tokenizer.encode(trimesh.Trimesh(mesh.vertices, mesh.faces, process=False))
    inside = tokenizer.voxelize(path)
    assert (inside.sdf < 0).sum() < (tokenizer.voxelize(trimesh.creation.box((3, 4, 2))).sdf < 0).sum()


@pytest.mark.parametrize("shape", ["ring and box", "cone", "fin"])
def test_a_shape_has_the_same_tokens_in_every_format(tokenizer: ShapeTokenizer, tmp_path: Path, shape: str):
    """To the bit where a format holds the coordinates as they are; with six digits in OBJ and OFF, the same codes."""
    fin = trimesh.util.concatenate([trimesh.creation.box((1, 1, 1)), trimesh.creation.box((2, 0.3, 0.7))])
    mesh = {"ring and box": ring_and_box(), "cone": trimesh.creation.cone(0.7, 1.3), "fin": fin}[shape]
    turn = trimesh.transformations.rotation_matrix(0.3, (1, 2, 3))
    mesh = trimesh.Trimesh(mesh.apply_transform(turn).vertices.astype(np.float32), mesh.faces, process=False)
    found = {}
    for suffix, options in {"stl": {}, "ply": {}, "glb": {}, "obj": {"digits": 6}, "off": {"digits": 6}}.items():
        mesh.export(tmp_path / f"shape.{suffix}", **options)
        found[suffix] = tokenizer.encode(tmp_path / f"shape.{suffix}")
    for suffix, tokens in found.items():
        assert np.array_equal(tokens.coords, found["stl"].coords), suffix
        assert np.array_equal(tokens.indices, found["stl"].indices), suffix


def test_a_file_that_can_not_be_read_is_named(tokenizer: ShapeTokenizer, tmp_path: Path):
    (tmp_path / "cut.obj").write_text("v 0 0 0\nf 1 2 3\n")
    with pytest.raises(InputError, match=r"cut\.obj: line 2: a face names vertex 2"):
        tokenizer.encode(tmp_path / "cut.obj")
    with pytest.raises(InputError, match=r"gone\.obj can't be opened"):
        tokenizer.encode(tmp_path / "gone.obj")
