"""How far a surface or a field is from the truth, and statistics over shapes.

Everything is in the [-1, 1] cube that the truth was normalised into, and nothing is ever aligned. Meshes, grids and
numbers in, figures out; may import model.meshes and model.sdf.
"""

from .distances import AnyMesh, checked_mesh
from .field import compare_sdf
from .iou import Field
from .statistics import Change, Summary, summarise, summarise_change
from .truth import FSCORE_THRESHOLDS, GeometryMetrics, Truth, compare

__all__ = [
    "FSCORE_THRESHOLDS",
    "AnyMesh",
    "Change",
    "Field",
    "GeometryMetrics",
    "Summary",
    "Truth",
    "checked_mesh",
    "compare",
    "compare_sdf",
    "summarise",
    "summarise_change",
]
