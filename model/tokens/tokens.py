"""Shapes as integers: what a tokenizer makes, and its files."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from ..errors import InputError, first_line, reading
from ..files import whole_file

REMEDY = "expected a file of tokens; check its path, or encode again"
SHAPES_PER_ROW_GROUP = 1024
LARGEST_COORDINATE = 1e300  # of a frame: far enough from where float64 ends

_CONVENTIONS = {
    "coords": "x, y, z of each latent voxel, one after the other; a latent voxel is 8^3 voxels of the tokenizer's grid",
    "indices": "the row of the codebook of each latent voxel; with residual levels one of each level, voxel by voxel",
    "frame": "world = cube * scale + center, the cube being [-1, 1]^3",
    "fingerprint": "of the tokenizer that made the tokens and alone can decode them",
}
_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("coords", pa.list_(pa.int32())),
        ("indices", pa.list_(pa.int32())),
        ("center", pa.list_(pa.float64(), 3)),
        ("scale", pa.float64()),
        ("fingerprint", pa.string()),
    ],
    metadata=_CONVENTIONS,
)


@dataclass(frozen=True, eq=False)
class Tokens:
    """A shape as integers: a code of each level per occupied latent voxel, and the affine back to the mesh's own frame.

    Raises InputError for arrays that cannot be that. Whether coordinates and codes exist in a tokenizer is its to say:
    see Vocabulary.check in grammar.py.
    """

    coords: Int[np.ndarray, "num_voxels 3"]  # int32, latent voxels of 8^3 voxels each; encode gives them in C order
    indices: Int[np.ndarray, "num_voxels ..."]  # int64, rows of the codebook; with several levels a column for each
    center: Float[np.ndarray, "3"]  # float64: world = cube * scale + center
    scale: float
    fingerprint: str  # of the tokenizer that made them

    def __post_init__(self) -> None:
        coords, indices = _array("coords", self.coords), _array("indices", self.indices)
        if coords.ndim != 2 or coords.shape[1] != 3 or indices.ndim not in (1, 2) or len(coords) != len(indices):
            raise InputError(
                f"coords are {list(coords.shape)} and indices {list(indices.shape)}; expected [N, 3] and [N], or "
                "[N, levels]; give every latent voxel one code of each level"
            )
        if indices.size == 0:
            raise InputError("there are no tokens; expected at least one; encode a mesh that has a surface")
        coords, indices = _integers("coords", coords, np.int32), _integers("indices", indices, np.int64)
        center, scale = _array("center", self.center), _array("scale", self.scale)
        for numbers, shape in ((center, (3,)), (scale, ())):
            plain = numbers.dtype.kind in "iuf" and numbers.shape == shape
            if not (plain and (np.abs(numbers) <= LARGEST_COORDINATE).all()):
                raise InputError(
                    f"center is {self.center} and scale {self.scale}; expected 3 finite numbers and one, none above "
                    f"{LARGEST_COORDINATE:g}"
                )
        if not scale > 0:
            raise InputError(f"scale is {self.scale}; expected a number above 0; it is half the cube's side in world")
        if not isinstance(self.fingerprint, str):
            raise InputError(f"fingerprint is {self.fingerprint!r}; expected text; it names the tokenizer")
        indices = indices[:, 0] if indices.shape[1:] == (1,) else indices
        for name, value in (("coords", coords), ("indices", indices), ("center", center.astype(np.float64))):
            object.__setattr__(self, name, value)  # lists become arrays
        object.__setattr__(self, "scale", float(scale))

    def __len__(self) -> int:
        """Of latent voxels."""
        return len(self.indices)

    @property
    def by_level(self) -> Int[np.ndarray, "num_voxels num_levels"]:
        """The indices with a column for each level, also where there is one."""
        return self.indices.reshape(len(self), -1)

    def __eq__(self, other: object) -> bool:
        """Whether coordinates, codes (row by row), frame and tokenizer are the same, to the bit."""
        return (
            isinstance(other, Tokens)
            and np.array_equal(self.coords, other.coords)
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.center, other.center)
            and (self.scale, self.fingerprint) == (other.scale, other.fingerprint)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    def in_c_order(self) -> "Tokens":
        """The same shape, latent voxels sorted by x, then y, then z."""
        order = np.lexsort(self.coords.T[::-1])
        return Tokens(self.coords[order], self.indices[order], self.center, self.scale, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """One shape into one file: .npz or .parquet, by the suffix."""
        path = Path(path)
        if path.suffix == ".parquet":
            write_parquet(path, [(path.stem, self)])
        elif path.suffix == ".npz":
            arrays: dict[str, Any] = {**vars(self), "fingerprint": np.array(self.fingerprint)}
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez_compressed(file, **arrays)
        else:
            raise InputError(f"{path}: tokens can't be saved as {path.suffix or 'a file without suffix'}; use .npz")

    @staticmethod
    def load(path: str | Path) -> "Tokens":
        """What save wrote. Raises InputError naming the file when it is missing, damaged or something else."""
        path = Path(path)
        if path.suffix == ".parquet":
            shapes = [tokens for _, tokens in islice(read_parquet(path), 2)]
            if len(shapes) != 1:
                found = "more than one shape" if shapes else "no shape"
                raise InputError(f"{path} holds {found}; expected 1; use shape_tokenizer.tokens.read_tokens")
            return shapes[0]
        if path.suffix != ".npz":
            raise InputError(
                f"{path} is no .npz and no .parquet file; expected what save wrote; shape_tokenizer.tokens.read_tokens "
                "reads .jsonl and folders"
            )
        with reading(path, REMEDY), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            coords, indices, center = arrays["coords"], arrays["indices"], arrays["center"]
            scale, fingerprint = float(arrays["scale"]), str(arrays["fingerprint"])
        try:
            return Tokens(coords, indices, center, scale, fingerprint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def check_made_by(tokenizer: str, fingerprint: object) -> None:
    """Raise InputError for tokens with this fingerprint, where the tokenizer has another."""
    if fingerprint != tokenizer:
        raise InputError(
            f"the tokens come from tokenizer {fingerprint} but this is {tokenizer}; decode them with the one that made "
            "them"
        )


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:  # lists of unequal length
        raise InputError(f"{name} can't be an array ({first_line(error)}); expected one; correct it") from error


def _integers(name: str, array: np.ndarray, dtype: type[np.integer]) -> np.ndarray:
    """Of this type, where they are such as a file can hold."""
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} are {array.dtype}; expected integers; convert them")
    if array.min() < -(2**31) or array.max() >= 2**31:
        raise InputError(f"{name} go from {array.min()} to {array.max()}; expected 32 bits; correct them")
    return array.astype(dtype, copy=False)


def write_parquet(path: Path, shapes: Iterable[tuple[str, Tokens]]) -> None:
    """Named shapes into one table, a row each, in the order given; they are taken as the file grows."""
    remaining = iter(shapes)
    options = {"compression": "zstd", "write_page_checksum": True}
    with whole_file(path) as partial, pq.ParquetWriter(partial, _SCHEMA, **options) as writer:
        while batch := list(islice(remaining, SHAPES_PER_ROW_GROUP)):
            rows = [
                {
                    **vars(tokens),
                    "name": name,
                    "coords": tokens.coords.reshape(-1),
                    "indices": tokens.indices.reshape(-1),
                }
                for name, tokens in batch
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_parquet(path: Path) -> Iterator[tuple[str, Tokens]]:
    """What write_parquet wrote, one shape after the other. Raises InputError naming the file, and the row if it can."""
    for name, tokens in read_rows(path):
        if isinstance(tokens, InputError):
            raise InputError(f"{path}, shape {name!r}: {tokens}") from tokens
        yield name, tokens


def read_rows(path: Path) -> Iterator[tuple[str, Tokens | InputError]]:
    """As read_parquet, with the reason in the place of a shape whose row holds none."""
    with reading(path, REMEDY), pq.ParquetFile(path, page_checksum_verification=True) as file:
        if missing := sorted(set(_SCHEMA.names) - set(file.schema_arrow.names)):
            raise InputError(
                f"{path} has no column {missing[0]}; expected a table that Tokens.save wrote; read a data set by "
                "shape_tokenizer.tokens.read_tokens, or encode again"
            )
        if sum(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)) != file.metadata.num_rows:
            raise ValueError("its footer tells of two numbers of rows")
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=_SCHEMA.names)
            if table.schema.remove_metadata() != _SCHEMA.remove_metadata():
                raise InputError(f"{path} has columns of other types; expected a table of tokens; encode again")
            for row in range(len(table)):
                yield table["name"][row].as_py() or "", _tokens_of(table, row)


def _tokens_of(table: pa.Table, row: int) -> Tokens | InputError:
    coords, indices, center, scale, fingerprint = (table[column][row] for column in _SCHEMA.names[1:])
    if not (coords.is_valid and indices.is_valid and center.is_valid and scale.is_valid):
        return InputError("a value is missing; expected all of them; encode again")
    flat = coords.values.to_numpy(zero_copy_only=False)
    codes = indices.values.to_numpy(zero_copy_only=False).astype(np.int64)
    num_voxels = len(flat) // 3
    try:
        return Tokens(
            flat.reshape(-1, 3) if len(flat) % 3 == 0 else flat,
            codes.reshape(num_voxels, -1) if num_voxels and len(codes) % num_voxels == 0 else codes,
            np.array(center.as_py(), np.float64),
            scale.as_py(),
            fingerprint.as_py() or "",
        )
    except InputError as error:
        return error
