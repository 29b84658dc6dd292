"""What passes between stages as tensors: batches of shapes, latents, codes."""

from tasks.data.codebook import (
    CODEBOOK_FILE,
    Codebooks,
    imported_codes,
    load_codebooks,
    save_codebooks,
)
from tasks.data.dataset import ShapeBatch, View, load_targets, training_batches
from tasks.data.latents import (
    ShapeLatents,
    VectorBatch,
    draw_vectors,
    latents_file,
    latents_files,
    read_vectors,
    write_latents,
)
from tasks.data.views import choose_views, encode_views
