"""What people look at: pictures of shapes, the page of an evaluation, the comparison of two.

Draws and words figures that others have measured; no result depends on it.
"""

from .compare import PER_SHAPE, check_comparable, compare_rows, compare_within, read_evaluation, show_changes
from .figures import COSTS, ROW_TITLES, figures_of, rows_of
from .gallery import Gallery, Ranking
from .page import CODEBOOK_TITLES, Aggregates, Evaluation, report_page
from .sheet import draw_shapes

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
    "draw_shapes",
    "figures_of",
    "read_evaluation",
    "report_page",
    "rows_of",
    "show_changes",
]
