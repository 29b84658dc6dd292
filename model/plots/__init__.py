"""Pictures of a training run and of a codebook, with the tables beside them; no result depends on them."""

from .codebook import draw_codebook
from .curves import draw_history, draw_usage, other_columns, read_history, usage_table
from .png import small_png

__all__ = ["draw_codebook", "draw_history", "draw_usage", "other_columns", "read_history", "small_png", "usage_table"]
