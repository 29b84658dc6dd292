"""The flat sequence that a language model reads: its integers, its grammar, and what may follow a beginning."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from operator import index
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int

from ..errors import InputError
from .tokens import Tokens

NUM_OCCUPANCIES = 255  # a cell of the octree has at least one of its 8 children


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

    This order is canonical: every set of voxels with codes has exactly one sequence, and a sequence can't name a voxel
    twice; only cells beyond a grid that is no power of two, and wrong lengths and kinds, are left to be refused. A
    position and a code for each voxel would be easier to read, but takes a vocabulary of grid_size^3 positions or four
    integers a voxel, where the octree takes about 1.3; the price is that a voxel's place follows from all occupancies
    before it.
    """

    num_codes: tuple[int, ...]  # of each residual level
    grid_size: int  # latent voxels along a side of the cube

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_codes", tuple(self.num_codes))  # a list, as JSON has it, will do

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

    def read(self, prefix: Sequence[int] | Int[np.ndarray, " length"]) -> "SequenceReader":
        """A reader that has read the beginning of a sequence, or all of it.

        Raises InputError naming the place where the grammar forbids it.
        """
        tokens, reader = _as_integers(prefix), SequenceReader(self)
        for token in tokens:
            if reader.codes is not None:
                raise InputError(
                    f"{len(tokens) - reader.position} tokens follow the end at position {reader.position - 1}; "
                    "expected one shape; cut the sequence there"
                )
            reader.read(token)
        return reader

    def parse(self, sequence: Sequence[int] | Int[np.ndarray, " length"]) -> Codes:
        """The inverse of flatten. Raises InputError for anything that flatten does not give, naming the place."""
        reader = self.read(sequence)
        if reader.codes is not None:
            return reader.codes
        if not reader.position:
            raise InputError("the sequence is empty; expected a shape from start to end; drop it")
        raise InputError(
            f"the sequence ends after {reader.position} tokens; expected {self.describe_kind(reader.expected)}; it was "
            "cut short"
        )

    @property
    def masks(self) -> Bool[np.ndarray, "num_kinds size"]:
        """Which integers are of a kind. Kinds, which SequenceReader.expected names, are: the codes of each residual
        level; the occupancies of a cell whose upper half lies in the grid on no axis, on z, on y, ... on all three;
        each marker, from start on; and nothing, which follows the end."""
        return _masks_of(self)

    def marker_kind(self, marker: int) -> int:
        """The row of masks that allows this marker alone."""
        return len(self.num_codes) + 8 + marker - self.start

    @property
    def nothing(self) -> int:
        """The row of masks that allows no integer."""
        return self.marker_kind(self.size)

    def describe_kind(self, kind: int) -> str:
        """A row of masks in words."""
        num_levels = len(self.num_codes)
        if kind < num_levels:
            return f"a code of level {kind + 1}" if kind else "a code"
        if kind < num_levels + 8:
            within = "" if kind == num_levels + 7 else f" of cells within the grid of {self.grid_size} a side"
            return f"an occupancy{within}"
        return "nothing" if kind == self.nothing else self.describe(self.start + kind - num_levels - 8)

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


@cache
def _masks_of(vocabulary: Vocabulary) -> Bool[np.ndarray, "num_kinds size"]:
    num_levels = len(vocabulary.num_codes)
    masks = np.zeros((vocabulary.nothing + 1, vocabulary.size), bool)
    for level in range(num_levels):
        masks[level, vocabulary.codes(level)] = True
    occupancies = np.arange(1, NUM_OCCUPANCIES + 1)
    for room in range(8):
        beyond = sum(1 << child for child in range(8) if child & ~room)
        masks[num_levels + room, vocabulary.first_occupancy : vocabulary.start] = occupancies & beyond == 0
    for marker in range(vocabulary.start, vocabulary.size):
        masks[vocabulary.marker_kind(marker), marker] = True
    masks.setflags(write=False)
    return masks


class SequenceTokenizer(Protocol):
    """What files of sequences need of a tokenizer: model.tokenizer's is one, which brings torch and a network along."""

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def fingerprint(self) -> str: ...

    def to_sequence(self, tokens: Tokens) -> list[int]: ...

    def from_sequence(
        self, sequence: Sequence[int], *, center: Sequence[float] = ..., scale: float = ...
    ) -> Tokens: ...


class SequenceReader:
    """Reads a sequence integer by integer and knows what may come next, in a time that does not grow with its length
    (but for the last of an octree's level, which takes that of its cells)."""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.position = 0  # how many integers were read
        self.codes: Codes | None = None  # the shape, when its end was read
        self._masks = vocabulary.masks
        self._grammar = self._shape()
        self.expected = next(self._grammar)  # the kind of what comes next: a row of vocabulary.masks

    @property
    def allowed(self) -> Bool[np.ndarray, " size"]:
        """Which integers may come next; none after the end."""
        return self._masks[self.expected]

    def read(self, token: int) -> None:
        """Take the next integer, be it Python's, NumPy's or a tensor without dimensions.

        Raises InputError naming the place where it is not allowed; then nothing changes.
        """
        token = index(token)
        if not (0 <= token < self._masks.shape[1] and self._masks[self.expected, token]):
            got, expected = self.vocabulary.describe(token), self.vocabulary.describe_kind(self.expected)
            raise InputError(f"position {self.position} of the sequence is {got}; expected {expected}; drop the shape")
        self.position += 1
        try:
            self.expected = self._grammar.send(token)
        except StopIteration as end:
            self.codes, self.expected = end.value, self.vocabulary.nothing

    def _shape(self) -> Generator[int, int, Codes]:
        """The grammar: yields the kind of what comes next, is sent an integer of that kind, and returns the shape."""
        words = self.vocabulary
        offsets = [words.codes(level).start for level in range(len(words.num_codes))]
        cells = np.zeros(1, np.int64)
        leaves: list[int] = []
        yield words.marker_kind(words.start)
        for number in range(1, words.octree_levels + 1):
            yield words.marker_kind(words.level(number))
            occupancies = []
            for room in self._room(cells, number):
                occupancy = (yield len(offsets) + room) - words.first_occupancy + 1
                occupancies.append(occupancy)
                if number == words.octree_levels:
                    for _ in range(occupancy.bit_count()):
                        for level, offset in enumerate(offsets):
                            leaves.append((yield level) - offset)
            children = np.unpackbits(np.array(occupancies, np.uint8)[:, None], axis=1, bitorder="little")
            parent, child = np.nonzero(children)
            cells = cells[parent] << 3 | child
        yield words.marker_kind(words.end)
        coords = morton_coords(cells, words.octree_levels)
        order = np.lexsort(coords.T[::-1])
        indices = np.array(leaves, np.int64).reshape(len(coords), -1)[order]
        return Codes(coords[order], indices if len(offsets) > 1 else indices[:, 0])

    def _room(self, cells: Int[np.ndarray, " num_cells"], number: int) -> list[int]:
        """On which axes the upper half of each cell of octree level number - 1 lies in the grid, as 4x + 2y + z."""
        side = 1 << self.vocabulary.octree_levels - number  # of a child, in latent voxels
        upper = (2 * morton_coords(cells, number - 1) + 1) * side < self.vocabulary.grid_size
        return (upper @ np.array([4, 2, 1])).tolist()


def _as_integers(sequence: Sequence[int] | np.ndarray) -> list[int]:
    """Of a list, an array or a tensor; neither true nor 3.0 is an integer here."""
    numbers = sequence.tolist() if hasattr(sequence, "tolist") else sequence
    integers = isinstance(numbers, (list, tuple)) and all(
        isinstance(n, (int, np.integer)) and not isinstance(n, bool) for n in numbers
    )
    if not integers:
        raise InputError("the sequence is not a list of integers; expected one such as to_sequence gives; convert it")
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
