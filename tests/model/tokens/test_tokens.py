import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.tokens import Tokens, Vocabulary
from model.tokens.grammar import Codes, morton_coords, morton_keys
from model.tokens.tokens import read_parquet, write_parquet

SMALL = Vocabulary((10,), grid_size=4)  # 10 codes, 255 occupancies, start 265, end 266, levels 267 and 268
TWO_LEVELS = Vocabulary((10, 5), grid_size=4)  # 15 codes, 255 occupancies, start 270, end 271, levels 272 and 273


def tokens_of(coords: list, indices: list | None = None, **changes) -> Tokens:
    fields = {
        "coords": np.array(coords, np.int32),
        "indices": np.array(range(len(coords)) if indices is None else indices, np.int64),
        "center": np.array([1.0, 2.0, 1 / 3]),
        "scale": 0.1,
        "fingerprint": "0123456789abcdef",
    }
    return Tokens(**{**fields, **changes})


@st.composite
def shapes(draw) -> tuple[Vocabulary, Codes]:
    """Any set of voxels with any codes, of any small grid and codebook."""
    size = draw(st.integers(1, 12))
    num_codes = tuple(draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    axis = st.integers(0, size - 1)
    voxels = sorted(draw(st.sets(st.tuples(axis, axis, axis), min_size=1, max_size=60)))
    code = st.tuples(*(st.integers(0, number - 1) for number in num_codes))
    indices = np.array(draw(st.lists(code, min_size=len(voxels), max_size=len(voxels))), np.int64)
    if len(num_codes) == 1:
        indices = indices[:, 0]
    return Vocabulary(num_codes, size), Codes(np.array(voxels, np.int32), indices)


# --- the flat sequence -----------------------------------------------------------------------------------------------


def test_a_sequence_by_hand():
    """Two voxels in the first octant of a 4^3 grid, at its children 0 and 7; one in the last, at its child 4."""
    codes = Codes(np.array([[0, 0, 0], [1, 1, 1], [3, 2, 2]], np.int32), np.array([5, 6, 7]))
    assert SMALL.octree_levels == 2
    assert (SMALL.start, SMALL.end, SMALL.level(1), SMALL.level(2), SMALL.size) == (265, 266, 267, 268, 269)
    occupancy = 10 - 1  # of value v is v more than this
    assert SMALL.flatten(codes) == [
        265,
        267, occupancy + 0b10000001,  # the cube's children 0 and 7
        268, occupancy + 0b10000001, 5, 6, occupancy + 0b00010000, 7,
        266,
    ]  # fmt: skip
    assert SMALL.describe(occupancy + 0b10000001) == "occupancy 129"


def test_a_sequence_of_two_residual_levels_by_hand():
    """As above: each voxel has a code of the first level, 0 to 9, and one of the second, 10 to 14."""
    codes = Codes(np.array([[0, 0, 0], [1, 1, 1], [3, 2, 2]], np.int32), np.array([[5, 0], [6, 4], [7, 1]]))
    occupancy = 15 - 1
    assert TWO_LEVELS.flatten(codes) == [
        270,
        272, occupancy + 0b10000001,
        273, occupancy + 0b10000001, 5, 10 + 0, 6, 10 + 4, occupancy + 0b00010000, 7, 10 + 1,
        271,
    ]  # fmt: skip
    assert (TWO_LEVELS.describe(9), TWO_LEVELS.describe(14)) == ("code 9", "code 4 of level 2")


@settings(max_examples=200, deadline=None)
@given(shapes())
def test_every_shape_comes_back_from_its_sequence(shape: tuple[Vocabulary, Codes]):
    vocabulary, codes = shape
    sequence = vocabulary.flatten(codes)
    assert all(0 <= token < vocabulary.size for token in sequence)
    for form in (sequence, tuple(sequence), np.array(sequence), torch.tensor(sequence)):
        back = vocabulary.parse(form)
        np.testing.assert_array_equal(back.coords, codes.coords)
        np.testing.assert_array_equal(back.indices, codes.indices)
    assert back.coords.dtype == np.int32
    assert back.indices.dtype == np.int64


@settings(max_examples=50, deadline=None)
@given(shapes(), st.randoms(use_true_random=False))
def test_the_order_of_voxels_does_not_reach_the_sequence(shape: tuple[Vocabulary, Codes], random):
    vocabulary, codes = shape
    order = random.sample(range(len(codes.indices)), len(codes.indices))
    assert vocabulary.flatten(Codes(codes.coords[order], codes.indices[order])) == vocabulary.flatten(codes)


def accepted(vocabulary: Vocabulary, sequence: list) -> bool:
    """Whether a sequence is read as a shape; if so, it must be that shape's own and only sequence."""
    try:
        codes = vocabulary.parse(sequence)
    except InputError:
        return False
    assert vocabulary.flatten(codes) == sequence
    return True


@settings(max_examples=300, deadline=None)
@given(shapes(), st.data())
def test_a_spoiled_sequence_is_refused_or_is_another_shapes_own(shape: tuple[Vocabulary, Codes], data):
    vocabulary, codes = shape
    sequence = vocabulary.flatten(codes)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(sequence)))
        token = data.draw(st.integers(-2, vocabulary.size + 1))
        end = data.draw(st.integers(place, min(len(sequence), place + 2)))
        sequence[place:end] = data.draw(st.sampled_from([[], [token], [token, token]]))
    accepted(vocabulary, sequence)


@settings(max_examples=300, deadline=None)
@given(
    st.builds(Vocabulary, st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple), st.integers(1, 9)),
    st.lists(st.one_of(st.integers(0, 300), st.integers(), st.floats(), st.none(), st.booleans(), st.text())),
)
def test_garbage_is_refused(vocabulary: Vocabulary, garbage: list):
    assert not accepted(vocabulary, garbage)
    assert not accepted(vocabulary, [vocabulary.start, *garbage])


@settings(max_examples=200, deadline=None)
@given(shapes(), st.data())
def test_every_beginning_of_a_sequence_is_refused(shape: tuple[Vocabulary, Codes], data):
    vocabulary, codes = shape
    sequence = vocabulary.flatten(codes)
    length = data.draw(st.integers(0, len(sequence) - 1))
    with pytest.raises(InputError, match=r"the sequence is empty|cut short"):
        vocabulary.parse(sequence[:length])


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([], r"the sequence is empty; expected a shape"),
        ([265], r"ends after 1 tokens; expected level 1; it was cut short"),
        ([3], r"position 0 of the sequence is code 3; expected start"),
        ([265, 268], r"position 1 of the sequence is level 2; expected level 1"),
        ([265, 267, 4], r"position 2 of the sequence is code 4; expected an occupancy"),
        ([265, 267, 10, 268, 11, 266], r"position 5 of the sequence is end; expected a code"),
        ([265, 267, 10, 268, 10, 3, 4, 266], r"position 6 of the sequence is code 4; expected end"),
        ([265, 267, 10, 268, 10, 3, 266, 1, 1], r"2 tokens follow the end at position 6"),
        ([265, 267, 10, 268, 10, 300, 266], r"position 5 of the sequence is 300, which is outside the vocabulary of"),
        ([265, 267, 10, 268, 10, -1, 266], r"position 5 of the sequence is -1, which is outside the vocabulary"),
        ([265, 267, 10, 268, 10, 10**30, 266], r"position 5 of the sequence is 10{30}, which is outside"),
        ([265, 267, 10, 268, 10, 3.0, 266], r"not a list of integers"),
        ([265, 267, 10, 268, 10, True, 266], r"not a list of integers"),
        ([270, 272, 15, 273, 15, 3, 271], r"position 6 of the sequence is end; expected a code of level 2"),
        ([270, 272, 15, 273, 15, 3, 4, 271], r"position 6 of the sequence is code 4; expected a code of level 2"),
        ([270, 272, 15, 273, 15, 12, 3, 271], r"position 5 of the sequence is code 2 of level 2; expected a code"),
        ([[265], [267]], r"not a list of integers"),
        ("265 267", r"not a list of integers"),
        (None, r"not a list of integers"),
        (np.zeros((2, 2), np.int64), r"not a list of integers"),
    ],
)  # fmt: skip
def test_a_wrong_sequence_is_refused_with_its_place(sequence: object, message: str):
    two_levels = isinstance(sequence, list) and sequence[:1] == [TWO_LEVELS.start]
    with pytest.raises(InputError, match=message):
        (TWO_LEVELS if two_levels else SMALL).parse(sequence)


def test_a_cell_beyond_a_grid_of_no_power_of_two_is_refused():
    three = Vocabulary((10,), grid_size=3)
    sequence = SMALL.flatten(Codes(np.array([[0, 0, 3]], np.int32), np.array([5])))
    assert three.octree_levels == SMALL.octree_levels
    words = r"position 4 of the sequence is occupancy 2; expected an occupancy of cells within the grid of 3 a side"
    with pytest.raises(InputError, match=words):
        three.parse(sequence)


def test_a_full_grid_of_the_published_size_takes_a_moment():
    """A hostile length is no hostile time: work is bounded by the length of the sequence."""
    vocabulary = Vocabulary((8192,), 64)
    coords = np.stack(np.unravel_index(np.arange(64**3)[::5], (64, 64, 64)), 1).astype(np.int32)
    codes = Codes(coords, np.arange(len(coords)) % 8192)
    np.testing.assert_array_equal(vocabulary.parse(vocabulary.flatten(codes)).coords, coords)


def test_a_surface_takes_about_a_third_more_than_its_codes():
    """Of the 8 children of a cell, a surface meets about 4, so levels shrink by 4: 1 + 1/4 + 1/16 + ... = 4/3."""
    x, y, z = np.indices((64, 64, 64)).reshape(3, -1) - 31.5
    shell = np.abs(np.sqrt(x**2 + y**2 + z**2) - 28) < 0.9
    coords = np.stack(np.unravel_index(np.flatnonzero(shell), (64, 64, 64)), 1).astype(np.int32)
    sequence = Vocabulary((8192,), 64).flatten(Codes(coords, np.zeros(len(coords), np.int64)))
    assert 1.2 < len(sequence) / len(coords) < 1.4


def test_morton_order_is_that_of_the_bits():
    coords = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 2], [2, 0, 0], [3, 3, 3]], np.int32)
    keys = morton_keys(coords, 2)
    assert keys.tolist() == [0, 1, 2, 4, 8, 32, 63]
    np.testing.assert_array_equal(morton_coords(keys, 2), coords)


# --- what no tokens are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (tokens_of([[0, 0, 0]], [10]), r"1 indices are outside the codebook, the first is 10; expected 0 to 9"),
        (tokens_of([[0, 0, 0]], [-1]), r"the first is -1; expected 0 to 9"),
        (tokens_of([[0, 0, 4]]), r"outside the grid, the first at \[0, 0, 4\]; expected 0 to 3"),
        (tokens_of([[0, 0, 0]], [[1, 2]]), r"a latent voxel has 2 codes; expected 1, one of each residual level"),
        (tokens_of([[0, -1, 0]]), r"outside the grid, the first at \[0, -1, 0\]"),
        (tokens_of([[1, 1, 1], [0, 0, 0], [1, 1, 1]]), r"there more than once, the first at \[1, 1, 1\]"),
    ],
)
def test_tokens_that_a_vocabulary_has_not_are_refused(tokens: Tokens, message: str):
    for refuse in (SMALL.check, SMALL.flatten):
        with pytest.raises(InputError, match=message):
            refuse(tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coords": np.zeros((2, 3), np.int32)}, r"coords are \[2, 3\] and indices \[1\]; expected \[N, 3\] and \[N\]"),
        ({"indices": np.zeros((1, 2, 3), np.int64)}, r"coords are \[1, 3\] and indices \[1, 2, 3\]; expected"),
        ({"indices": np.zeros((1, 0), np.int64)}, r"there are no tokens"),
        ({"coords": np.zeros((1, 2), np.int32)}, r"coords are \[1, 2\]"),
        ({"coords": np.zeros((0, 3), np.int32), "indices": np.zeros(0, np.int64)}, r"there are no tokens"),
        ({"indices": np.zeros(1)}, r"indices are float64; expected integers"),
        ({"coords": np.zeros((1, 3))}, r"coords are float64; expected integers"),
        ({"coords": [[2**31, 0, 0]]}, r"coords go from 0 to 2147483648; expected 32 bits"),
        ({"scale": 0.0}, r"scale is 0.0; expected a number above 0"),
        ({"scale": "1"}, r"scale 1; expected 3 finite numbers and one"),
        ({"scale": float("nan")}, r"scale nan"),
        ({"scale": None}, r"scale None"),
        ({"center": np.array([0, np.inf, 0])}, r"center is .*inf"),
        ({"center": np.zeros(2)}, r"expected 3 finite numbers"),
        ({"center": ["a", "b", "c"]}, r"center is .*expected 3 finite numbers"),
        ({"center": [10**400, 0, 0]}, r"expected 3 finite numbers"),
        ({"center": np.full(3, 1e308), "scale": 1e308}, r"none above 1e\+300"),
        ({"coords": [[0, 1], [2]]}, r"coords can't be an array"),
        ({"fingerprint": None}, r"fingerprint is None; expected text"),
    ],
)
def test_arrays_that_cannot_be_tokens_are_refused(fields: dict, message: str):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(tokens_of([[0, 0, 0]]), **fields)


def test_a_column_of_codes_is_one_code_a_voxel():
    assert tokens_of([[0, 0, 0], [1, 2, 3]], [[4], [5]]) == tokens_of([[0, 0, 0], [1, 2, 3]], [4, 5])
    assert tokens_of([[0, 0, 0], [1, 2, 3]], [4, 5]).by_level.tolist() == [[4], [5]]


def test_lists_of_numbers_will_do():
    arrays = tokens_of([[0, 0, 0], [1, 2, 3]])
    fields = json.loads(json.dumps(vars(arrays), default=np.ndarray.tolist))
    made = Tokens(**fields)
    assert made == arrays
    assert (made.coords.dtype, made.indices.dtype) == (np.int32, np.int64)


def test_tokens_are_equal_when_all_of_them_is():
    tokens = tokens_of([[0, 0, 0], [1, 2, 3]])
    assert tokens == tokens_of([[0, 0, 0], [1, 2, 3]])
    for change in (
        {"indices": np.array([0, 2])},
        {"coords": np.array([[0, 0, 0], [1, 2, 2]])},
        {"center": np.zeros(3)},
        {"scale": 0.2},
        {"fingerprint": "another"},
    ):
        assert tokens != dataclasses.replace(tokens, **change)
    assert tokens != 1


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shape.npz", "shape.parquet"])
@pytest.mark.parametrize("indices", [[0, 8191, 7], [[0, 3], [8191, 0], [7, 7]]])
def test_tokens_survive_a_file(tmp_path: Path, name: str, indices: list):
    tokens = tokens_of([[0, 0, 0], [1, 2, 3], [3, 3, 3]], indices)
    tokens.save(tmp_path / name)
    back = Tokens.load(tmp_path / name)
    assert back == tokens
    assert (back.coords.dtype, back.indices.dtype) == (np.int32, np.int64)


def test_a_table_holds_many_shapes_in_order(tmp_path: Path):
    shapes = [(f"chairs/{n}", tokens_of([[n % 4, 0, 0]], [n % 10], scale=n + 0.1)) for n in range(1500)]
    write_parquet(tmp_path / "all.parquet", iter(shapes))
    assert list(read_parquet(tmp_path / "all.parquet")) == shapes
    with pytest.raises(InputError, match=r"all.parquet holds .* expected 1; use .*read_tokens"):
        Tokens.load(tmp_path / "all.parquet")


def test_a_table_can_be_empty(tmp_path: Path):
    write_parquet(tmp_path / "none.parquet", [])
    assert list(read_parquet(tmp_path / "none.parquet")) == []


@pytest.mark.parametrize("name", ["shape.npz", "shape.parquet"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str):
    path = tmp_path / name
    with pytest.raises(InputError, match=rf"{name} does not exist"):
        Tokens.load(path)
    tokens_of([[0, 0, 0], [1, 2, 3]]).save(path)
    whole = path.read_bytes()
    for length in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"{name} can't be read"):
            Tokens.load(path)
    path.write_bytes(b"solid a mesh, no tokens")
    with pytest.raises(InputError, match=name):
        Tokens.load(path)


def test_what_save_does_not_write_is_not_loaded(tmp_path: Path):
    (tmp_path / "tokens.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"tokens.jsonl is no .npz and no .parquet file; .*read_tokens"):
        Tokens.load(tmp_path / "tokens.jsonl")


def test_a_flipped_bit_is_no_silent_change(tmp_path: Path):
    """Of a file with checksums, everything that matters is either as it was or refused."""
    tokens = tokens_of(np.argwhere(np.ones((4, 4, 4))).tolist(), np.arange(64) % 10)
    for name in ("shape.npz", "shape.parquet"):
        path = tmp_path / name
        tokens.save(path)
        whole = path.read_bytes()
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            with contextlib.suppress(InputError):
                assert Tokens.load(path) == tokens


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path):
    np.savez(tmp_path / "a.npz", vertices=np.zeros(3))
    with pytest.raises(InputError, match=r"a\.npz can't be read"):
        Tokens.load(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", **{**vars(tokens_of([[0, 0, 0]])), "indices": np.zeros(2, np.int64)})
    with pytest.raises(InputError, match=r"b\.npz: coords are \[1, 3\] and indices \[2\]"):
        Tokens.load(tmp_path / "b.npz")
    pq.write_table(pa.table({"name": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet has no column center"):
        Tokens.load(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"can't be saved as \.txt; use \.npz"):
        tokens_of([[0, 0, 0]]).save(tmp_path / "d.txt")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("indices", [], r"shape 'x': there are no tokens"),
        ("coords", [1, 2], r"shape 'x': coords are \[2\] and indices \[1\]"),
        ("coords", None, r"shape 'x': a value is missing"),
        ("coords", [0, None, 0], r"coords are float64; expected integers"),
        ("scale", -1.0, r"shape 'x': scale is -1.0"),
    ],
)
def test_a_wrong_row_is_refused_by_name(tmp_path: Path, column: str, value: object, message: str):
    path = tmp_path / "t.parquet"
    write_parquet(path, [("x", tokens_of([[0, 0, 0]]))])
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(
        table.set_column(place, table.schema.field(place), [pa.array([value], table.schema.types[place])]), path
    )
    with pytest.raises(InputError, match=message):
        Tokens.load(path)
