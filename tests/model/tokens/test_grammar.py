"""What may come next: exactly what some shape's sequence has there, whether one looks at masks or parses."""

import random
from collections import defaultdict
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.tokenizer import ShapeLogitsProcessor
from model.tokens import SequenceReader, Vocabulary
from model.tokens.grammar import Codes
from tests.model.tokens.test_tokens import SMALL, shapes
from tests.small_tokenizer import small_tokenizer

VOCABULARIES = st.builds(Vocabulary, st.lists(st.integers(1, 20), min_size=1, max_size=3).map(tuple), st.integers(1, 9))


def allowed_after(vocabulary: Vocabulary, prefix: list[int]) -> set[int]:
    return set(np.flatnonzero(vocabulary.read(prefix).allowed).tolist())


@pytest.mark.parametrize("vocabulary", [Vocabulary((2,), 2), Vocabulary((1, 2), 2), Vocabulary((3, 2), 1)])
def test_what_may_come_next_is_what_some_shape_has_there(vocabulary: Vocabulary):
    """All shapes of a small grid, told by flatten, which knows nothing of masks: up to 3^8 - 1 of them."""
    side, codes = vocabulary.grid_size, list(product(*map(range, vocabulary.num_codes)))
    cells = np.array(list(product(range(side), repeat=3)), np.int32)
    follows: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for choice in product([None, *codes], repeat=len(cells)):
        here = [number for number, code in enumerate(choice) if code is not None]
        if here:
            sequence = vocabulary.flatten(Codes(cells[here], np.array([choice[number] for number in here])))
            for length in range(len(sequence)):
                follows[tuple(sequence[:length])].add(sequence[length])
            follows[tuple(sequence)] = set()
    for prefix in random.Random(0).sample(sorted(follows), min(len(follows), 1500)):
        assert allowed_after(vocabulary, list(prefix)) == follows[prefix], prefix


@settings(max_examples=100, deadline=None)
@given(shapes())
def test_every_beginning_of_a_sequence_allows_its_next_integer(shape: tuple[Vocabulary, Codes]):
    vocabulary, codes = shape
    reader = SequenceReader(vocabulary)
    for place, token in enumerate(torch.tensor(vocabulary.flatten(codes))):
        assert reader.allowed[token]
        assert reader.position == place
        reader.read(token)
    assert reader.codes is not None
    np.testing.assert_array_equal(reader.codes.coords, codes.coords)
    assert not reader.allowed.any()


@settings(max_examples=200, deadline=None)
@given(VOCABULARIES, st.randoms(use_true_random=False))
def test_a_random_walk_over_what_is_allowed_is_a_shape(vocabulary: Vocabulary, chance: random.Random):
    reader, sequence = SequenceReader(vocabulary), []
    while reader.codes is None:
        sequence.append(chance.choice(np.flatnonzero(reader.allowed).tolist()))
        reader.read(sequence[-1])
    assert vocabulary.flatten(vocabulary.parse(sequence)) == sequence


@settings(max_examples=300, deadline=None)
@given(shapes(), st.data())
def test_what_parse_refuses_the_mask_refuses(shape: tuple[Vocabulary, Codes], data: st.DataObject):
    vocabulary, codes = shape
    sequence = vocabulary.flatten(codes)
    place = data.draw(st.integers(0, len(sequence) - 1))
    sequence[place] = data.draw(st.integers(0, vocabulary.size - 1))
    reader, forbidden = SequenceReader(vocabulary), None
    for number, token in enumerate(sequence):
        if not reader.allowed[token]:
            forbidden = number
            break
        reader.read(token)
    if forbidden is None and reader.codes is not None:
        assert vocabulary.flatten(vocabulary.parse(sequence)) == sequence
        return
    places = f"position {forbidden} of the sequence|follow the end at position {(forbidden or 0) - 1};"
    with pytest.raises(InputError, match="it was cut short" if forbidden is None else places):
        vocabulary.parse(sequence)


def test_a_forbidden_prefix_is_refused_with_its_place():
    tokenizer = small_tokenizer()
    start, level = tokenizer.vocabulary.start, tokenizer.vocabulary.level(1)
    assert np.flatnonzero(tokenizer.allowed_next([])).tolist() == [start]
    assert tokenizer.allowed_next([start, level]).sum() == 255
    with pytest.raises(InputError, match="position 1 of the sequence is code 3; expected level 1"):
        tokenizer.allowed_next([start, 3])
    with pytest.raises(InputError, match="1 tokens follow the end at position 6; expected one shape"):
        SMALL.read([265, 267, 10, 268, 10, 3, 266, 266])
    reader = SMALL.read([265, 267])
    with pytest.raises(InputError, match="position 2 of the sequence is -1, which is outside"):
        reader.read(-1)
    reader.read(10)  # what was refused changed nothing
    assert reader.position == 3


# --- over logits -----------------------------------------------------------------------------------------------------

OFFSET, TEXT = 50, 7  # the vocabulary's place in a model's own; an integer of the model's own


def grow(processor: ShapeLogitsProcessor, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    scores = torch.randn(len(rows), OFFSET + SMALL.size + 3, generator=generator)
    masked = processor(rows, scores)
    assert ((masked == scores) | (masked == -torch.inf)).all()
    return torch.cat([rows, torch.multinomial(masked.softmax(1), 1, generator=generator)], 1)


def test_a_thousand_samples_over_random_scores_are_shapes():
    processor, generator = ShapeLogitsProcessor(SMALL, offset=OFFSET), torch.Generator().manual_seed(0)
    assert torch.isfinite(processor(torch.zeros(1, 0).long(), torch.zeros(1, OFFSET + SMALL.size))).sum() == 1
    rows = torch.full((1000, 2), TEXT)  # a prompt
    while not (rows[:, -1] == OFFSET + SMALL.end).all():
        rows = grow(processor, rows, generator)
    assert len({tuple(row) for row in rows.tolist()}) > 990
    for row in (rows[:, 2:] - OFFSET).tolist():
        sequence = row[: row.index(SMALL.end) + 1]
        assert SMALL.flatten(SMALL.parse(sequence)) == sequence
        assert set(row[len(sequence) :]) <= {SMALL.end}


def test_rows_may_change_places_and_a_new_generation_may_begin():
    """As in beam search: whatever the rows were, each is masked as it is now, and one that went astray is let end."""
    processor, generator = ShapeLogitsProcessor(SMALL, offset=OFFSET), torch.Generator().manual_seed(1)
    rows = torch.full((4, 1), TEXT)
    for step in range(30):
        rows = grow(processor, rows, generator)
        if step % 3 == 0:
            rows = rows[torch.randint(4, (4,), generator=generator)]
        alone = ShapeLogitsProcessor(SMALL, offset=OFFSET)
        scores = torch.zeros(4, OFFSET + SMALL.size)
        assert torch.equal(processor(rows, scores), alone(rows, scores))
    rows[1, -1] = TEXT  # at a score of -inf
    scores = processor(torch.cat([rows, rows[:, -1:]], 1), torch.zeros(4, OFFSET + SMALL.size))
    assert torch.isfinite(scores[1]).nonzero().tolist() == [[OFFSET + SMALL.end]]
    grow(processor, torch.full((2, 1), TEXT), generator)


def test_rows_and_scores_that_can_be_no_shapes_are_refused():
    processor = ShapeLogitsProcessor(SMALL)
    with pytest.raises(InputError, match="scores of 268 integers; expected at least 269"):
        processor(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 268))
    rows = torch.tensor([[TEXT, 265, 267], [265, 267, 3]])
    with pytest.raises(InputError, match="row 1, counted from its start: position 2 of the sequence is code 3"):
        processor(rows, torch.zeros(2, SMALL.size))


def test_what_the_mask_lets_through_the_network_decodes():
    tokenizer = small_tokenizer()
    chance = random.Random(0)
    for _ in range(3):
        reader, sequence = SequenceReader(tokenizer.vocabulary), []
        while reader.codes is None:
            sequence.append(chance.choice(np.flatnonzero(reader.allowed).tolist()))
            reader.read(sequence[-1])
        mesh = tokenizer.decode(tokenizer.from_sequence(sequence))
        assert len(mesh.faces)
        assert np.abs(mesh.vertices).max() <= 1
