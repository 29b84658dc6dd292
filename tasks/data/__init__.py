"""What passes between stages as tensors: batches of shapes, latents, codes."""

from tasks.data.codebook import (
    CODEBOOK_FILE,
    VALIDATION_FILE,
    Codebooks,
    load_codebooks,
    save_codebooks,
)
from tasks.data.dataset import ShapeBatch, load_targets, training_batches
from tasks.data.latents import ShapeLatents, latents_file, read_vectors, write_latents
from tasks.data.views import choose_views, encode_views

__all__ = [
    "CODEBOOK_FILE",
    "VALIDATION_FILE",
    "Codebooks",
    "ShapeBatch",
    "ShapeLatents",
    "choose_views",
    "encode_views",
    "latents_file",
    "load_codebooks",
    "load_targets",
    "read_vectors",
    "save_codebooks",
    "training_batches",
    "write_latents",
]
