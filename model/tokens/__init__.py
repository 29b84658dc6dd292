"""Shapes as integers: tokens, the flat sequence that a language model reads, and the files that hold either.

Needs neither torch nor a network. The sequence's grammar and the files are formats: what others have written must stay
readable.
"""

from .dataset import Dataset, open_dataset
from .files import Found, check_target, count_shapes, inside, read_tokens, row_of, write_tokens
from .grammar import SequenceReader, Vocabulary
from .tokens import Tokens, check_made_by

__all__ = [
    "Dataset",
    "Found",
    "SequenceReader",
    "Tokens",
    "Vocabulary",
    "check_made_by",
    "check_target",
    "count_shapes",
    "inside",
    "open_dataset",
    "read_tokens",
    "row_of",
    "write_tokens",
]
