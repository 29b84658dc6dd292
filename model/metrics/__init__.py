"""How far a surface or a field is from the truth, and statistics over shapes.

Everything is in the [-1, 1] cube that the truth was normalised into, and nothing is ever aligned.
"""

from .metrics import Change, Mesh, Summary, TriangleMesh, Truth, compare_sdf, summarise, summarise_change

__all__ = [
    "Change",
    "Mesh",
    "Summary",
    "TriangleMesh",
    "Truth",
    "compare_sdf",
    "summarise",
    "summarise_change",
]
