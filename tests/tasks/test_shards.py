import pickle
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh

from model.errors import InputError
from model.sdf import SparseSDF, Surface, grid_surface, voxelize
from tasks.shards import SURFACES, Shards, open_shards, shape_row, write_index, write_shards, write_surfaces

ROOT = Path(__file__).parents[2]

NAMES = ["a/ball", "b", "c", "d", "e"]
SPLIT = ["train", "test", "val", "train", "test"]


@pytest.fixture(scope="module")
def shapes() -> dict[str, SparseSDF]:
    meshes = [trimesh.creation.icosphere(1), trimesh.creation.box((1, 2, 3)), trimesh.creation.torus(1, 0.3)]
    meshes += [trimesh.creation.cone(1, 2), trimesh.creation.capsule(1, 1)]
    found = [voxelize(mesh.vertices + 5, mesh.faces, resolution=16, truncation_voxels=2.0) for mesh in meshes]
    return dict(zip(NAMES, found, strict=True))


@pytest.fixture(scope="module")
def written(shapes: dict[str, SparseSDF], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdf")
    write(directory, shapes)
    return directory


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "sdf"))


def write(directory: Path, shapes: dict[str, SparseSDF]) -> None:
    places = write_shards(directory, (shape_row(*item) for item in shapes.items()), shapes_per_shard=2)
    index = pd.DataFrame({"name": NAMES, "split": SPLIT}).join(pd.DataFrame(places))
    write_index(directory / "index.parquet", index, resolution=16, truncation_voxels=2.0)
    write_surfaces(directory / SURFACES, [(name, grid_surface(shapes[name])) for name in ("b", "e")])


def test_every_shape_comes_back_bit_by_bit(written: Path, shapes: dict[str, SparseSDF]) -> None:
    shards = open_shards(written)
    assert (shards.resolution, shards.truncation_voxels) == (16, 2.0)
    for name, shape in shapes.items():
        read = shards.read(name)
        for column in ("coords", "sdf", "center", "brick_coords", "brick_inside", "brick_band"):
            stored, original = getattr(read, column), getattr(shape, column)
            assert stored.dtype == original.dtype
            assert np.array_equal(stored, original)
        assert (read.scale, read.bad_flip_ratio, read.resolution) == (shape.scale, shape.bad_flip_ratio, 16)
        assert all(np.array_equal(a, b) for a, b in zip(read.beyond(), shape.beyond(), strict=True))


def test_a_distance_of_one_shape_changes_the_digest(written: Path, shapes: dict, tmp_path: Path) -> None:
    """Else training on the shapes of another voxelizer would go on from the state of the one before."""
    nearer = {**shapes, "d": replace(shapes["d"], sdf=shapes["d"].sdf * np.float32(0.5))}
    write(tmp_path / "same", shapes)
    write(tmp_path / "other", nearer)
    assert open_shards(tmp_path / "same").digest() == open_shards(written).digest()
    assert open_shards(tmp_path / "other").digest() != open_shards(written).digest()
    other, before = (open_shards(folder).index for folder in (tmp_path / "other", written))
    assert list(other.index[other.digest != before.digest]) == ["d"]
    assert other.drop(columns="digest").equals(before.drop(columns="digest"))

    shutil.copy(written / other.shard["d"], tmp_path / "other")  # whole, but not what the digest above is of
    mixed = open_shards(tmp_path / "other")
    with pytest.raises(InputError, match=r"parquet holds other values of d than index\.parquet was.*dvc repro -f vox"):
        mixed.read("d")
    assert np.array_equal(mixed.read("a/ball").sdf, shapes["a/ball"].sdf)


def test_surfaces_of_the_test_split_are_kept_and_no_others(written: Path, shapes: dict[str, SparseSDF]) -> None:
    shards = open_shards(written)
    assert shards.names("test") == ["b", "e"]
    for name in ("b", "e"):
        read, original = shards.read_surface(name), grid_surface(shapes[name])
        assert isinstance(read, Surface)
        assert np.array_equal(read.vertices, original.vertices)
        assert np.array_equal(read.faces, original.faces)
    with pytest.raises(InputError, match="only the test split"):
        shards.read_surface("c")


def test_shards_hold_one_shape_per_row_group(written: Path) -> None:
    files = sorted(written.glob("shard_*.parquet"))
    assert sum(pq.ParquetFile(file).num_row_groups for file in files) == len(NAMES)
    assert all(pq.ParquetFile(file).metadata.row_group(0).num_rows == 1 for file in files)
    conventions = {key.decode() for key in pq.read_schema(files[0]).metadata}
    assert {"resolution", "truncation_voxels", "sign", "frame", "layout"} <= conventions


def test_a_mesh_more_or_less_changes_its_shard_alone(shapes: dict[str, SparseSDF], tmp_path: Path) -> None:
    row = shape_row("", shapes["b"])

    def write_all(where: str, names: list[str]) -> list[bytes]:
        rows = (row.set_column(0, "name", pa.array([name])) for name in names)
        shards = [place.shard for place in write_shards(tmp_path / where, rows, shapes_per_shard=8)]
        assert max(Counter(shards).values()) <= 4 * 8
        return [(tmp_path / where / shard).read_bytes() for shard in dict.fromkeys(shards)]

    names = [f"{number:03d}" for number in range(160)]
    before = write_all("before", names)
    assert 10 <= len(before) <= 40  # 20 on average
    for number, other in enumerate((names[1:], [*names[:70], "069 more", *names[70:]], [*names[:100], *names[101:]])):
        assert len(set(write_all(f"after {number}", other)) - set(before)) <= 2  # two where a shard's end comes or goes


def test_writing_again_gives_the_same_bytes(written: Path, shapes: dict[str, SparseSDF], tmp_path: Path) -> None:
    write(tmp_path, shapes)
    for file in written.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_shards_survive_the_way_to_a_worker(written: Path, shapes: dict[str, SparseSDF]) -> None:
    there: Shards = pickle.loads(pickle.dumps(open_shards(written)))
    assert np.array_equal(there.read("c").sdf, shapes["c"].sdf)


@pytest.mark.parametrize("damage", ["missing", "cut short", "text", "a flipped bit"])
def test_a_damaged_shard_is_named_with_the_remedy(directory: Path, damage: str) -> None:
    file = directory / "shard_00002.parquet"
    content = bytearray(file.read_bytes())
    shards = open_shards(directory)
    if damage == "missing":
        file.unlink()
    elif damage == "cut short":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "text":
        file.write_text("no shard")
    else:
        column = pq.ParquetFile(file).metadata.row_group(0).column(4)  # the sdf
        content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"shard_00002\.parquet.*dvc repro -f voxelize"):
        shards.read("c")
    assert len(shards.read("b").sdf)  # the others are still good


def test_a_missing_shard_is_noticed_when_opening(directory: Path) -> None:
    (directory / "shard_00002.parquet").unlink()
    with pytest.raises(InputError, match=r"shard_00002\.parquet is missing.*dvc repro -f voxelize"):
        open_shards(directory)


def test_shards_in_the_wrong_place_are_noticed(directory: Path) -> None:
    shutil.copy(directory / "shard_00000.parquet", directory / "shard_00001.parquet")
    with pytest.raises(InputError, match="holds a/ball where"):
        open_shards(directory).read("b")


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and nothing"])
def test_a_missing_or_damaged_index_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "index.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"index\.parquet.*dvc repro -f voxelize"):
        open_shards(tmp_path)


def test_an_index_of_something_else_is_named(tmp_path: Path) -> None:
    pd.DataFrame({"name": [], "shard": []}).to_parquet(tmp_path / "index.parquet")
    with pytest.raises(InputError, match=r"index\.parquet.*dvc repro -f voxelize"):
        open_shards(tmp_path)


def test_an_index_without_digests_of_the_shapes_is_named(directory: Path) -> None:
    index = open_shards(directory).index.drop(columns="digest").reset_index()
    write_index(directory / "index.parquet", index, resolution=16, truncation_voxels=2.0)
    with pytest.raises(InputError, match=r"index\.parquet is .* an older version's .*'digest'.*dvc repro -f voxelize"):
        open_shards(directory)


WRITE_TO_A_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import trimesh
from model.sdf import voxelize
from tasks.shards import (shape_row, write_shards)

ball = trimesh.creation.icosphere()
row = shape_row("ball", voxelize(ball.vertices, ball.faces, resolution=32, truncation_voxels=2.0))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow beyond it: writes fail under Arrow
try:
    write_shards(Path(sys.argv[1]), [row] * 3, shapes_per_shard=3)
except OSError as error:
    print(error)
"""


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own: the limit holds for every file that a process writes."""
    command = [sys.executable, "-c", WRITE_TO_A_FULL_DISK, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    assert "File too large" in process.stdout
    assert not list(tmp_path.iterdir())
