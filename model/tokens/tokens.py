"""Shapes as integers: what a tokenizer makes, its files, and the flat sequence that a language model reads."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from ..errors import InputError, is_of_environment
from ..files import whole_file

NUM_OCCUPANCIES = 255  # a cell of the octree has at least one of its 8 children
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
    see Vocabulary.check.
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
        for name, array in (("coords", coords), ("indices", indices)):
            if not np.issubdtype(array.dtype, np.integer):
                raise InputError(f"{name} are {array.dtype}; expected integers; convert them")
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
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return Tokens(
                    arrays["coords"],
                    arrays["indices"],
                    arrays["center"],
                    float(arrays["scale"]),
                    str(arrays["fingerprint"]),
                )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except Exception as error:  # zip, deflate and numpy's header each fail in their own ways
            if is_of_environment(error):
                raise
            raise unreadable(path, error) from error


def _array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, OverflowError) as error:  # lists of unequal length
        raise InputError(
            f"{name} can't be an array ({' '.join(str(error).split())}); expected one; correct it"
        ) from error


def write_parquet(path: Path, shapes: Iterable[tuple[str, Tokens]]) -> None:
    """Named shapes into one table, a row each, in the order given; they are taken as the file grows."""
    remaining = iter(shapes)
    options = {"compression": "zstd", "write_page_checksum": True}
    with whole_file(path) as partial, pq.ParquetWriter(partial, _SCHEMA, **options) as writer:
        while batch := list(islice(remaining, SHAPES_PER_ROW_GROUP)):
            rows = [
                {
                    "name": name,
                    "coords": tokens.coords.reshape(-1),
                    "indices": tokens.indices.reshape(-1),
                    "center": tokens.center,
                    "scale": tokens.scale,
                    "fingerprint": tokens.fingerprint,
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
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if missing := sorted(set(_SCHEMA.names) - set(file.schema_arrow.names)):
                raise InputError(f"{path} has no column {missing[0]}; expected a table of tokens; encode again")
            if sum(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)) != file.metadata.num_rows:
                raise ValueError("its footer tells of two numbers of rows")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=_SCHEMA.names)
                if table.schema.remove_metadata() != _SCHEMA.remove_metadata():
                    raise InputError(f"{path} has columns of other types; expected a table of tokens; encode again")
                for row in range(len(table)):
                    yield table["name"][row].as_py() or "", _tokens_of(table, row)
    except Exception as error:  # what is damaged makes the reader fail in many ways
        if isinstance(error, InputError) or is_of_environment(error):
            raise
        raise unreadable(path, error) from error


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


def unreadable(path: Path, error: Exception) -> InputError:
    if not path.is_file():
        return InputError(f"{path} does not exist; expected a file of tokens; check its path")
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError(f"{path} is no readable file of tokens ({reason}); encode again")


class Codes(NamedTuple):
    coords: Int[np.ndarray, "num_voxels 3"]  # int32, in C order
    indices: Int[np.ndarray, "num_voxels ..."]  # int64; as in Tokens


@dataclass(frozen=True)
class Vocabulary:
    """The integers of a flat sequence, and its grammar.

    A sequence tells the occupied latent voxels as an octree, from the whole cube down, and the codes at its leaves:

        start  level 1, occupancy  level 2, occupancy ...  level n, occupancy, its codes, occupancy, its codes ...  end

    On level i there is one occupancy for each occupied cell that level i - 1 told of (level 1: one, for the cube). It
    says which of the cell's 8 children are occupied: bit 4x + 2y + z stands for the child at (x, y, z). Cells follow
    their parents' order, and children the order of their bits: Morton order, x the most significant. On the last
    level the children are latent voxels, and each occupancy is followed by the codes of each of them: one of every
    residual level of the codebook, the first level's first.

    | integer           | means                       | K: codes of all residual levels, n: octree levels
    | 0 to K - 1        | code: that row of the codebooks, one under another |
    | K to K + 254      | occupancy 1 to 255                               |
    | K + 255, K + 256  | start, end                                       |
    | K + 257 to K + 256 + n | level 1 to n                                |

    Every set of voxels with codes has exactly one sequence, and a sequence can't name a voxel twice; only cells beyond
    a grid that is no power of two, and wrong lengths and kinds, are left to be refused. A position and a code for each
    voxel would be easier to read, but takes a vocabulary of grid_size^3 positions or four integers a voxel, where the
    octree takes about 1.3; the price is that a voxel's place follows from all occupancies before it.
    """

    num_codes: tuple[int, ...]  # of each residual level
    grid_size: int  # latent voxels along a side of the cube

    @property
    def octree_levels(self) -> int:
        return max(1, (self.grid_size - 1).bit_length())

    @property
    def first_occupancy(self) -> int:
        return sum(self.num_codes)

    @property
    def start(self) -> int:
        return self.first_occupancy + NUM_OCCUPANCIES

    @property
    def end(self) -> int:
        return self.start + 1

    def level(self, number: int) -> int:
        """The marker before level `number` of the octree, from 1 to octree_levels."""
        return self.end + number

    def codes(self, residual_level: int) -> range:
        """The integers of the codes of this level, counted from 0."""
        first = sum(self.num_codes[:residual_level])
        return range(first, first + self.num_codes[residual_level])

    @property
    def size(self) -> int:
        """Integers in use: 0 to size - 1. A model's own symbols (padding, text) go above."""
        return self.level(self.octree_levels) + 1

    def check(self, codes: Tokens | Codes) -> None:
        """Raise InputError for voxels outside the grid or named twice, and for codes that the codebook has not."""
        coords, indices = codes.coords, codes.indices.reshape(len(codes.coords), -1)
        if indices.shape[1] != len(self.num_codes):
            raise InputError(
                f"a latent voxel has {indices.shape[1]} codes; expected {len(self.num_codes)}, one of each residual "
                "level; use the tokenizer that made the tokens"
            )
        for level, (column, size) in enumerate(zip(indices.T, self.num_codes, strict=True), start=1):
            if column.min() < 0 or column.max() >= size:
                wrong = column[(column < 0) | (column >= size)]
                raise InputError(
                    f"{len(wrong)} indices are outside the codebook{f' of level {level}' if level > 1 else ''}, the "
                    f"first is {wrong[0]}; expected 0 to {size - 1}; use the tokenizer that made the tokens"
                )
        outside = ((coords < 0) | (coords >= self.grid_size)).any(1)
        if outside.any():
            raise InputError(
                f"{outside.sum()} latent voxels are outside the grid, the first at {coords[outside][0].tolist()}; "
                f"expected 0 to {self.grid_size - 1} on each axis; use the tokenizer that made the tokens"
            )
        unique, counts = np.unique(coords, axis=0, return_counts=True)
        if len(unique) < len(coords):
            raise InputError(
                f"{len(coords) - len(unique)} latent voxels are there more than once, the first at "
                f"{unique[counts > 1][0].tolist()}; expected one code for each; drop the repeats"
            )

    def flatten(self, codes: Tokens | Codes) -> list[int]:
        """The sequence, whatever the order of the voxels. Raises InputError as check does."""
        self.check(codes)
        cells = morton_keys(codes.coords, self.octree_levels)
        order = cells.argsort()
        offsets = [self.codes(level).start for level in range(len(self.num_codes))]
        leaves = (np.asarray(codes.indices, np.int64).reshape(len(cells), -1)[order] + offsets).reshape(-1)
        cells = cells[order]
        levels: list[list[int]] = []
        for number in range(self.octree_levels, 0, -1):
            parents, first = np.unique(cells >> 3, return_index=True)
            told = self.first_occupancy - 1 + np.add.reduceat(1 << (cells & 7), first)
            if number == self.octree_levels:
                told = np.insert(leaves, first * len(offsets), told)
            levels.append([self.level(number), *told.tolist()])
            cells = parents
        return [self.start, *(token for level in reversed(levels) for token in level), self.end]

    def parse(self, sequence: Sequence[int] | Int[np.ndarray, " length"]) -> Codes:
        """The inverse of flatten. Raises InputError for anything that flatten does not give, naming the place."""
        reader = _Reader(_as_integers(sequence), self)
        reader.take_marker(self.start)
        cells = np.zeros(1, np.int64)
        leaves: list[int] = []
        for number in range(1, self.octree_levels + 1):
            reader.take_marker(self.level(number))
            occupancies = []
            for _ in range(len(cells)):
                occupancies.append(reader.take_occupancy())
                if number == self.octree_levels:
                    leaves += reader.take_codes(occupancies[-1].bit_count())
            children = np.unpackbits(np.array(occupancies, np.uint8)[:, None], axis=1, bitorder="little")
            parent, child = np.nonzero(children)
            cells = cells[parent] << 3 | child
        reader.take_marker(self.end)
        reader.expect_nothing()
        coords = morton_coords(cells, self.octree_levels)
        order = np.lexsort(coords.T[::-1])
        indices = np.array(leaves, np.int64).reshape(len(coords), -1)[order]
        codes = Codes(coords[order], indices if len(self.num_codes) > 1 else indices[:, 0])
        self.check(codes)
        return codes

    def describe(self, token: int) -> str:
        """An integer of a sequence in words."""
        for level in range(len(self.num_codes)):
            codes = self.codes(level)
            if token in codes:
                return f"code {token - codes.start}" + (f" of level {level + 1}" if level else "")
        if self.first_occupancy <= token < self.start:
            return f"occupancy {token - self.first_occupancy + 1}"
        if token in (self.start, self.end):
            return "start" if token == self.start else "end"
        if self.end < token < self.size:
            return f"level {token - self.end}"
        return f"{token}, which is outside the vocabulary of {self.size}"


class _Reader:
    """Takes a sequence apart from its beginning; what does not fit is an InputError with its place."""

    def __init__(self, tokens: list[int], vocabulary: Vocabulary):
        self.tokens, self.vocabulary = tokens, vocabulary
        self.position = 0

    def take_marker(self, marker: int) -> None:
        self._take(range(marker, marker + 1), self.vocabulary.describe(marker))

    def take_occupancy(self) -> int:
        """1 to 255."""
        first = self.vocabulary.first_occupancy
        return self._take(range(first, first + NUM_OCCUPANCIES), "an occupancy") - first + 1

    def take_codes(self, num_voxels: int) -> list[int]:
        """Of so many voxels, as rows of the codebooks: all levels of the first voxel, then of the next."""
        levels = [self.vocabulary.codes(level) for level in range(len(self.vocabulary.num_codes))]
        words = ["a code", *(f"a code of level {level}" for level in range(2, len(levels) + 1))]
        return [
            self._take(codes, word) - codes.start
            for _ in range(num_voxels)
            for codes, word in zip(levels, words, strict=True)
        ]

    def expect_nothing(self) -> None:
        if self.position < len(self.tokens):
            raise InputError(
                f"{len(self.tokens) - self.position} tokens follow the end at position {self.position - 1}; expected "
                "one shape; cut the sequence there"
            )

    def _take(self, allowed: range, expected: str) -> int:
        if self.position == len(self.tokens):
            raise InputError(f"the sequence ends after {self.position} tokens; expected {expected}; it was cut short")
        token = self.tokens[self.position]
        if token not in allowed:
            got = self.vocabulary.describe(token)
            raise InputError(f"position {self.position} of the sequence is {got}; expected {expected}; drop the shape")
        self.position += 1
        return token


def _as_integers(sequence: Sequence[int] | np.ndarray) -> list[int]:
    """Of a list, an array or a tensor; neither true nor 3.0 is an integer here."""
    numbers = sequence.tolist() if hasattr(sequence, "tolist") else sequence
    integers = isinstance(numbers, (list, tuple)) and all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers
    )
    if not integers:
        raise InputError("the sequence is not a list of integers; expected one such as to_sequence gives; convert it")
    if not numbers:
        raise InputError("the sequence is empty; expected a shape from start to end; drop it")
    return [int(n) for n in numbers]


def morton_keys(coords: Int[np.ndarray, "num_voxels 3"], num_levels: int) -> Int[np.ndarray, " num_voxels"]:
    """The path of each voxel through an octree of so many levels: 3 bits 4x + 2y + z a level, the top one first."""
    x, y, z = coords.astype(np.int64).T
    keys = np.zeros(len(coords), np.int64)
    for bit in reversed(range(num_levels)):
        keys = keys << 3 | (x >> bit & 1) << 2 | (y >> bit & 1) << 1 | (z >> bit & 1)
    return keys


def morton_coords(keys: Int[np.ndarray, " num_voxels"], num_levels: int) -> Int[np.ndarray, "num_voxels 3"]:
    """The inverse of morton_keys, int32."""
    coords = np.zeros((len(keys), 3), np.int32)
    for bit in range(num_levels):
        path = keys >> 3 * bit
        coords |= (np.stack([path >> 2 & 1, path >> 1 & 1, path & 1], 1) << bit).astype(np.int32)
    return coords
