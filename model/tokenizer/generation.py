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
    in beam search or when another generation begins, are read from their beginning.
    """

    def __init__(self, vocabulary: Vocabulary, *, offset: int = 0):
        """`offset` is what integer 0 of the vocabulary is called in the model's own, larger one."""
        self.vocabulary, self.offset = vocabulary, offset
        self._masks = torch.tensor(vocabulary.masks)
        self._rows: list[SequenceReader | None] = []  # None: no start yet
        self._seen = torch.zeros(0, 0, dtype=torch.long)

    def __call__(
        self, input_ids: Int[Tensor, "batch length"], scores: Float[Tensor, "batch num_scores"]
    ) -> Float[Tensor, "batch num_scores"]:
        """The scores, -inf where the grammar forbids the integer. Raises InputError for a row that it forbids."""
        end = self.offset + self.vocabulary.size
        if scores.shape[1] < end:
            raise InputError(
                f"there are scores of {scores.shape[1]} integers; expected at least {end}, the vocabulary's size from "
                "the offset on; enlarge the model's embedding"
            )
        self._follow(input_ids)
        self._masks = self._masks.to(scores.device)
        kinds = torch.tensor([self._expected(row) for row in self._rows], device=scores.device)
        forbidden = torch.ones_like(scores, dtype=torch.bool)
        forbidden[:, self.offset : end] = ~self._masks[kinds]
        return scores.masked_fill(forbidden, -torch.inf)

    def _expected(self, row: SequenceReader | None) -> int:
        if row is None:
            return self.vocabulary.marker_kind(self.vocabulary.start)
        return row.expected if row.codes is None else self.vocabulary.marker_kind(self.vocabulary.end)

    def _follow(self, input_ids: Int[Tensor, "batch length"]) -> None:
        length = input_ids.shape[1]
        if self._seen.shape == (len(input_ids), length - 1) and self._seen.device == input_ids.device:
            grown = (input_ids[:, :-1] == self._seen).all(1)
        else:
            self._rows = [None] * len(input_ids)
            grown = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        news = torch.stack([grown.long(), input_ids[:, -1]], 1).tolist()
        for number, (has_grown, token) in enumerate(news):
            if has_grown:
                self._rows[number] = self._read(self._rows[number], [token], number)
            else:
                self._rows[number] = self._read(None, input_ids[number].tolist(), number)
        self._seen = input_ids.clone()

    def _read(self, row: SequenceReader | None, tokens: list[int], number: int) -> SequenceReader | None:
        for token in tokens:
            own = token - self.offset
            if row is None and own == self.vocabulary.start:
                row = SequenceReader(self.vocabulary)
            if row is None or row.codes is not None:
                continue
            try:
                row.read(own)
            except InputError as error:
                raise InputError(f"row {number}, counted from its start: {error}") from error
        return row
