"""The grammar of shapes over a language model's logits, so that whatever it draws can be decoded."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from ..tokens import SequenceReader, Vocabulary


class ShapeLogitsProcessor:
    """What transformers calls a LogitsProcessor, for model.generate(..., logits_processor=[it]); any loop may call it.

    In each row the shape begins at the first `start`: what stands before it, a prompt or padding, is not looked at, and
    while there is none only `start` may come. After `end` only `end` may, which is the model's eos token; other padding
    may stand after it. Nothing but shapes comes out: integers outside the vocabulary get no chance.

    A call reads the one integer by which each row has grown. Rows that are not those of the last call with one more, as
    in beam search or when another generation begins, are read from their beginning. Beam search goes on with forbidden
    integers, at a score of -inf, where fewer are allowed than it has beams: after those only `end` may come.
    """

    def __init__(self, vocabulary: Vocabulary, *, offset: int = 0):
        """`offset` is what integer 0 of the vocabulary is called in the model's own, larger one."""
        self.vocabulary, self.offset = vocabulary, offset
        self._masks = torch.tensor(vocabulary.masks)
        self._rows: list[SequenceReader | None] = []  # None: no start yet
        self._dead: set[int] = set()
        self._seen = torch.zeros(0, 0, dtype=torch.long)

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch num_scores"]
    ) -> Float[Tensor, "batch num_scores"]:
        """The scores, -inf where the grammar forbids the integer. Raises InputError for a forbidden prompt."""
        end = self.offset + self.vocabulary.size
        if scores.shape[1] < end:
            raise InputError(
                f"there are scores of {scores.shape[1]} integers; expected at least {end}, the vocabulary's size from "
                "the offset on; enlarge the model's embedding"
            )
        self._follow(input_ids)
        self._masks = self._masks.to(scores.device)
        kinds = torch.tensor([self._expected(number) for number in range(len(input_ids))], device=scores.device)
        forbidden = torch.ones_like(scores, dtype=torch.bool)
        forbidden[:, self.offset : end] = ~self._masks[kinds]
        return scores.masked_fill(forbidden, -torch.inf)

    def _expected(self, number: int) -> int:
        row = self._rows[number]
        if row is None:
            return self.vocabulary.marker_kind(self.vocabulary.start)
        over = number in self._dead or row.codes is not None
        return self.vocabulary.marker_kind(self.vocabulary.end) if over else row.expected

    def _follow(self, input_ids: Int[Tensor, "batch length"]) -> None:
        goes_on = self._seen.shape == (len(input_ids), input_ids.shape[1] - 1)
        if goes_on:
            grown = (input_ids[:, :-1] == self._seen.to(input_ids.device)).all(1)
        else:
            grown = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
            self._rows, self._dead = [None] * len(input_ids), set()
        for number, (has_grown, last) in enumerate(zip(grown.tolist(), input_ids[:, -1:].tolist(), strict=True)):
            if not has_grown:
                self._rows[number] = None
                self._dead.discard(number)
            if number in self._dead:
                continue
            try:
                self._read(number, last if has_grown else input_ids[number].tolist())
            except InputError as error:
                if not goes_on:
                    raise InputError(f"row {number}, counted from its start: {error}") from error
                self._dead.add(number)
        self._seen = input_ids.clone()

    def _read(self, number: int, tokens: list[int]) -> None:
        for token in tokens:
            row, own = self._rows[number], token - self.offset
            if row is None and own == self.vocabulary.start:
                row = self._rows[number] = SequenceReader(self.vocabulary)
            if row is not None and row.codes is None:
                row.read(own)
