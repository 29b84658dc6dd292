"""What evaluate measures with: a shape's way through everything that was trained."""

from tasks.evaluation.reconstructions import CodeUse, Reconstruction, Reconstructor

__all__ = [
    "CodeUse",
    "Reconstruction",
    "Reconstructor",
]
