"""What people look at: pictures of shapes, curves, the page of an evaluation, the comparison of two.

Draws and words figures that others have measured; no result depends on it.
"""

from .codebook_plots import draw_codebook
from .compare import PER_SHAPE, check_comparable, compare_rows, compare_within, read_evaluation, show_changes
from .figures import COSTS, ROW_TITLES, figures_of, rows_of
from .gallery import Gallery, Ranking
from .page import CODEBOOK_TITLES, Aggregates, Evaluation, report_page
from .plots import draw_history, draw_shapes, draw_usage, read_history, usage_table

__all__ = [
    "CODEBOOK_TITLES",
    "COSTS",
    "PER_SHAPE",
    "ROW_TITLES",
    "Aggregates",
    "Evaluation",
    "Gallery",
    "Ranking",
    "check_comparable",
    "compare_rows",
    "compare_within",
    "draw_codebook",
    "draw_history",
    "draw_shapes",
    "draw_usage",
    "figures_of",
    "read_evaluation",
    "read_history",
    "report_page",
    "rows_of",
    "show_changes",
    "usage_table",
]
