"""Shapes as integers: tokens, the flat sequence that a language model reads, and the files that hold either.

Needs neither torch nor a network. The sequence's grammar and the files are formats: what others have written must stay
readable.
"""

from .files import Found, check_suffix, count_shapes, inside, read_tokens, write_tokens
from .tokens import Tokens, Vocabulary

__all__ = [
    "Found",
    "Tokens",
    "Vocabulary",
    "check_suffix",
    "count_shapes",
    "inside",
    "read_tokens",
    "write_tokens",
]
