"""What voxelize leaves: sparse SDFs in Parquet shards, an index, and the truth surfaces of the test split.

One shape is one row and one row group, so that any shape is read alone. Two 512-bit masks per brick say which voxels
are in the band and which are inside; the SDF lists the band's values in that order. Imports no torch, for voxelize's
many processes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Float, Int, UInt8

from model.bricks import BRICK_SIZE
from model.errors import InputError
from model.files import digest_of
from model.sparse_sdf import SparseSDF, Surface, voxel_coords
from model.tables import metadata_of, one_row, read_row, read_table, write_rows, write_table

INDEX = "index.parquet"
REJECTS = "rejects.parquet"
SURFACES = "surfaces.parquet"
SPLITS = ("train", "val", "test")
_FACTS = "facts"
REMEDY = "delete its folder and run dvc repro -f voxelize"

_CONVENTIONS = {
    "sign": "positive outside, negative inside",
    "sdf_unit": "truncation_voxels * 2 / resolution, so that the band is -1 < sdf < 1",
    "frame": "[-1, 1]^3, voxel i centred at (i + 0.5) * 2 / resolution - 1; world = cube * scale + center",
    "layout": "bricks of 8^3 in C order of x, y, z; masks are 512 bits a brick, C order, most significant bit first; "
    "sdf follows the set bits of band, brick by brick",
}
_SHAPE_FIELDS = [
    ("name", pa.string()),
    ("brick_coords", pa.list_(pa.uint16())),
    ("band", pa.binary()),
    ("inside", pa.binary()),
    ("sdf", pa.list_(pa.float32())),
    ("center", pa.list_(pa.float64(), 3)),
    ("scale", pa.float64()),
    ("bad_flip_ratio", pa.float64()),
    ("mode", pa.string()),
]
_SURFACE_FIELDS = [("name", pa.string()), ("vertices", pa.list_(pa.float32())), ("faces", pa.list_(pa.int32()))]


class PackedSDF(NamedTuple):
    """A shape's bricks as its row holds them, a bit for each voxel in place of its coordinates."""

    brick_coords: Int[np.ndarray, "num_bricks 3"]  # int32
    band: UInt8[np.ndarray, "num_bricks 64"]  # numpy.packbits of the 8^3 voxels of each brick, C order
    inside: UInt8[np.ndarray, "num_bricks 64"]
    sdf: Float[np.ndarray, " num_voxels"]  # float32, of the band's set bits, in their order


class Place(NamedTuple):
    """Where a shape's row is, and which."""

    shard: str
    row_group: int
    digest: str  # that the row carries, over every value of the shape


class Located(NamedTuple):
    """All that a worker of a data loader has to know of a shape; with the index, each of them would hold a copy."""

    path: Path
    row_group: int
    name: str
    digest: str


def shape_row(name: str, shape: SparseSDF) -> pa.RecordBatch:
    """One shape as a batch of one row, its schema carrying resolution, truncation and every convention."""
    metadata = {**_CONVENTIONS, "resolution": str(shape.resolution), "truncation_voxels": str(shape.truncation_voxels)}
    values = [
        name,
        shape.brick_coords.astype(np.uint16).reshape(-1),
        np.packbits(shape.brick_band).tobytes(),
        np.packbits(shape.brick_inside).tobytes(),
        shape.sdf,
        shape.center,
        shape.scale,
        shape.bad_flip_ratio,
        shape.mode,
    ]
    return one_row(values, pa.schema(_SHAPE_FIELDS, metadata=metadata))


def packed_of(row: pa.RecordBatch) -> PackedSDF:
    """What of it trains a network."""

    def value(column: str) -> pa.Scalar:
        return row.column(column)[0]

    return PackedSDF(
        value("brick_coords").values.to_numpy().reshape(-1, 3).astype(np.int32),
        np.frombuffer(value("band").as_buffer(), np.uint8).reshape(-1, 64),
        np.frombuffer(value("inside").as_buffer(), np.uint8).reshape(-1, 64),
        value("sdf").values.to_numpy(),
    )


def shape_of(row: pa.RecordBatch) -> SparseSDF:
    """The inverse of shape_row."""
    packed = packed_of(row)
    bricks = -1, BRICK_SIZE, BRICK_SIZE, BRICK_SIZE
    band, inside = (np.unpackbits(bits).reshape(bricks).astype(bool) for bits in (packed.band, packed.inside))
    metadata = metadata_of(row)
    return SparseSDF(
        coords=voxel_coords(packed.brick_coords, band),
        sdf=packed.sdf.copy(),
        resolution=int(metadata["resolution"]),
        truncation_voxels=float(metadata["truncation_voxels"]),
        center=np.array(row.column("center")[0].as_py()),
        scale=row.column("scale")[0].as_py(),
        brick_coords=packed.brick_coords,
        brick_inside=inside,
        bad_flip_ratio=row.column("bad_flip_ratio")[0].as_py(),
        mode=row.column("mode")[0].as_py(),
    )


def write_shards(directory: Path, rows: Iterable[pa.RecordBatch], *, shapes_per_shard: int) -> list[Place]:
    """Shapes into shards, in the order given; each shard appears whole or not at all.

    A shard has `shapes_per_shard` on average, at most four times as many: it ends where the hash of a name says, so
    that a mesh more or less changes the shard that it is in and no other, of which DVC then stores nothing anew.
    """
    places: list[Place] = []
    rest = iter(rows)
    for number, first in enumerate(rest):
        shard = f"shard_{number:05d}.parquet"
        digests = write_rows(directory / shard, _up_to_an_end(chain([first], rest), shapes_per_shard), first.schema)
        places.extend(Place(shard, group, digest) for group, digest in enumerate(digests))
    return places


def _up_to_an_end(rows: Iterable[pa.RecordBatch], shapes_per_shard: int) -> Iterator[pa.RecordBatch]:
    for number, row in enumerate(rows, 1):
        yield row
        digest = hashlib.sha256(row.column("name")[0].as_py().encode()).digest()
        if number == 4 * shapes_per_shard or int.from_bytes(digest[:8]) % shapes_per_shard == 0:
            return


def write_lone_shape(path: Path, shape: SparseSDF, facts: dict[str, Any]) -> None:
    """A file of one shape that has no name yet, and what is known about it besides."""
    row = shape_row("", shape)
    row = row.replace_schema_metadata({**metadata_of(row), _FACTS: json.dumps(facts)})
    write_rows(path, [row], row.schema)


def read_lone_shape(path: Path, name: str) -> pa.RecordBatch:
    """The row of a file of one shape, with a name."""
    row = read_row(path, 0, remedy=REMEDY).values
    metadata = {key: value for key, value in metadata_of(row).items() if key != _FACTS}
    return row.replace_schema_metadata(metadata).set_column(0, "name", pa.array([name]))


def read_facts(path: Path) -> dict[str, Any]:
    """What write_lone_shape was told."""
    return json.loads(metadata_of(read_row(path, 0, remedy=REMEDY).values)[_FACTS])


def write_surfaces(path: Path, surfaces: Iterable[tuple[str, Surface]]) -> None:
    """Truth meshes in the [-1, 1] cube, one row group each."""
    schema = pa.schema(_SURFACE_FIELDS, metadata={"frame": _CONVENTIONS["frame"]})
    rows = (one_row([name, s.vertices.reshape(-1), s.faces.reshape(-1)], schema) for name, s in surfaces)
    write_rows(path, rows, schema)


@dataclass(frozen=True)
class Shards:
    """What voxelize wrote. Files are opened shape by shape."""

    directory: Path
    index: pd.DataFrame = field(repr=False)  # by name: split, shard, row_group, digest, sha256, ...
    resolution: int
    truncation_voxels: float

    def names(self, split: str) -> list[str]:
        """Sorted names of the shapes of "train", "val" or "test"."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; expected one of {SPLITS}")
        return sorted(self.index.index[self.index.split == split])

    def read(self, name: str) -> SparseSDF:
        """One shape. Raises InputError naming the file when it is missing, damaged, or not what the index is of."""
        return shape_of(_read_named_row(*self.locate(name)))

    def locate(self, name: str) -> Located:
        """What read_packed takes."""
        shard, row_group, digest = (self.index[column][name] for column in Place._fields)
        return Located(self.directory / shard, int(row_group), name, digest)

    def digest(self) -> str:
        """Of the index and, by its column of digests, of every shape: another one means other data to train on."""
        return digest_of([(self.directory / INDEX).read_bytes()])

    def read_surface(self, name: str) -> Surface:
        """The truth mesh of a test shape, in the [-1, 1] cube."""
        if name not in self._surface_groups:
            raise InputError(f"{self.directory / SURFACES} has no surface of {name}; only the test split has them")
        row = _read_named_row(self.directory / SURFACES, self._surface_groups[name], name)
        vertices, faces = (row.column(column)[0].values.to_numpy().reshape(-1, 3) for column in ("vertices", "faces"))
        return Surface(vertices, faces)

    @cached_property
    def _surface_groups(self) -> dict[str, int]:
        return {name: group for group, name in enumerate(self.names("test"))}


def read_packed(place: Located) -> PackedSDF:
    """One shape's bricks; raises as Shards.read does."""
    return packed_of(_read_named_row(*place))


def open_shards(directory: Path) -> Shards:
    """Raises InputError naming the file when the index is missing or damaged, or a shard that it lists is missing."""
    path = directory / INDEX
    table = read_table(path, remedy=REMEDY)
    metadata = metadata_of(table)
    try:
        index = table.to_pandas().set_index("name")
        shards = Shards(directory, index, int(metadata["resolution"]), float(metadata["truncation_voxels"]))
        listed = sorted(set(index[[*Place._fields]].shard))
    except (KeyError, ValueError) as error:
        what = "is no index of shapes, or an older version's"
        raise InputError(f"{path} {what} ({type(error).__name__}: {error}); {REMEDY}") from error
    for shard in listed:
        if not (directory / shard).is_file():
            raise InputError(f"{directory / shard} is missing although {INDEX} lists it; {REMEDY}")
    return shards


def write_index(path: Path, index: pd.DataFrame, *, resolution: int, truncation_voxels: float) -> None:
    """The table of all shapes, one row each, columns as given."""
    write_table(path, index, {"resolution": resolution, "truncation_voxels": float(truncation_voxels)})


def _read_named_row(path: Path, group: int, name: str, digest: str | None = None) -> pa.RecordBatch:
    row, carried = read_row(path, group, remedy=REMEDY)
    if row.column("name")[0].as_py() != name:
        raise InputError(f"{path} holds {row.column('name')[0]} where {INDEX} expects {name}; {REMEDY}")
    if digest not in (None, carried):
        raise InputError(f"{path} holds other values of {name} than {INDEX} was written with; {REMEDY}")
    return row
