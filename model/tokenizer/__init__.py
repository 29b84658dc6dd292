"""The finished product: mesh to tokens and back, from and to a folder or the hub, with its card."""

from .generation import ShapeLogitsProcessor
from .tokenizer import ShapeTokenizer, decoded_surface

__all__ = ["ShapeLogitsProcessor", "ShapeTokenizer", "decoded_surface"]
