from pathlib import Path

import numpy as np
import pytest
import trimesh

from model.errors import InputError
from model.meshes import load_mesh
from tasks.voxelization import split_of, splits_brought
from tasks.voxelization.splits import EDGE, STEP, invariants, surface_hash

TURN = np.array([[0.0, -1, 0], [0, 0, 1], [-1, 0, 0]])  # by 90 degrees, and a mirror


def shapes() -> dict[str, trimesh.Trimesh]:
    creation = trimesh.creation
    return {
        "ring": creation.torus(0.7, 0.25),
        "cone": creation.cone(radius=0.6, height=1.2),
        "plate": creation.box((1.8, 1.2, 0.1)),
        "two": trimesh.util.concatenate([creation.icosphere(2), creation.box((3, 1, 1))]),
    }


def test_invariants_of_a_box_are_those_of_the_textbook():
    a, b, c = 4.0, 2.0, 1.0  # its sides; the largest is the unit of length
    box = trimesh.creation.box((a, b, c))
    area = 2 * (a * b + b * c + a * c)
    second_x = (
        2 * (b * c) * (a / 2) ** 2 + 2 * (a * b + a * c) * a**2 / 12
    ) / area  # two faces across x, four along it
    found = invariants(box.vertices, box.faces)
    assert found[0] == pytest.approx(np.sqrt(area) / a)
    assert found[3] == pytest.approx(np.sqrt(second_x) / a)
    assert (np.diff(found[1:4]) > 0).all()


@pytest.mark.parametrize("name", shapes())
@pytest.mark.parametrize("suffix", ["stl", "obj", "ply", "glb", "off"])
def test_format_scale_place_and_turns_leave_the_hash_alone(tmp_path: Path, name: str, suffix: str):
    mesh = shapes()[name]
    digest, on_edge = surface_hash(mesh.vertices, mesh.faces)
    assert not on_edge
    moved = trimesh.Trimesh(mesh.vertices @ TURN * 37.5 + [5, -3, 90], mesh.faces[::-1], process=False)
    content = moved.export(file_type=suffix)
    file = tmp_path / f"mesh.{suffix}"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    read = load_mesh(file)
    assert surface_hash(read.vertices, read.faces).digest == digest


def test_other_surfaces_have_other_hashes():
    digests = {surface_hash(mesh.vertices, mesh.faces).digest for mesh in shapes().values()}
    assert len(digests) == len(shapes())


def test_a_surface_on_the_edge_of_rounding_is_known_as_such():
    """Of boxes from thin to thick, few are on the edge, and only those may change when the sixth digit does."""
    thickness = np.linspace(0.1, 0.9, 4001)
    boxes = [trimesh.creation.box((1, 1, t)) for t in thickness]
    hashes = [surface_hash(box.vertices, box.faces) for box in boxes]
    on_edge = np.array([found.on_edge for found in hashes])
    assert 0 < on_edge.mean() < 20 * EDGE / STEP
    nudged = [surface_hash(box.vertices * [1, 1, 1 + 1e-7], box.faces).digest for box in boxes]
    moved = np.array([found.digest != other for found, other in zip(hashes, nudged, strict=True)])
    assert (on_edge | ~moved).all()


def test_splits_have_their_shares():
    digests = [f"{i:016x}" for i in np.random.default_rng(0).integers(0, 2**64, 4000, dtype=np.uint64)]
    splits = [split_of(digest, val_share=0.1, test_share=0.25) for digest in digests]
    shares = {split: splits.count(split) / len(splits) for split in ("train", "val", "test")}
    assert shares == pytest.approx({"train": 0.65, "val": 0.1, "test": 0.25}, abs=0.03)


# --- splits that the user brings ---------------------------------------------------------------------------------


def files(folder: Path, *names: str) -> dict[str, Path]:
    return {name: folder / f"{name}.stl" for name in names}


def test_folders_are_splits_where_all_meshes_are_below_them(tmp_path: Path):
    for split in ("train", "val", "test"):
        (tmp_path / split).mkdir()
    assert splits_brought(tmp_path, files(tmp_path, "train/a", "val/b", "test/c")) == {
        "train/a": "train", "val/b": "val", "test/c": "test",
    }  # fmt: skip
    assert splits_brought(tmp_path, files(tmp_path, "train/a", "val/b", "chairs/c")) is None
    assert splits_brought(tmp_path, files(tmp_path, "a", "b")) is None


def test_a_table_of_names_counts_before_folders(tmp_path: Path):
    (tmp_path / "split.csv").write_text("split,name\ntest,train/a\nval,b\ntrain,c\ntrain,gone\n")
    brought = splits_brought(tmp_path, files(tmp_path, "train/a", "b", "c"))
    assert brought == {"train/a": "test", "b": "val", "c": "train"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,set\na,train\n", "columns name, set; expected name and split"),
        ("name,split\na,training\n", "split of a is 'training'; expected train, val, test"),
        ("name,split\na,train\na,val\n", "names a twice"),
        ("name,split\nb,train\n", "lacks 1 of 1 meshes, a for one"),
        ("", "can't be read"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str, said: str):
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        splits_brought(tmp_path, files(tmp_path, "a"))


@pytest.mark.parametrize("lacking", ["train", "val", "test"])
@pytest.mark.parametrize("empty", [True, False])
def test_folders_of_which_one_is_missing_or_empty_are_refused(tmp_path: Path, lacking: str, empty: bool):
    others = {"train", "val", "test"} - {lacking}
    for split in others | ({lacking} if empty else set()):
        (tmp_path / split).mkdir()
    with pytest.raises(InputError, match=f"{lacking} has no mesh of the {lacking} split, of 2 in all; .*rename the"):
        splits_brought(tmp_path, files(tmp_path, *(f"{split}/a" for split in others)))


def test_one_folder_that_happens_to_be_called_like_a_split_is_none(tmp_path: Path):
    (tmp_path / "train").mkdir()
    assert splits_brought(tmp_path, files(tmp_path, "train/a", "train/b")) is None
