"""The training loop, the state from which it resumes, and validation."""

from tasks.training.loop import History, Losses, cosine, train
from tasks.training.resume import ResumePoint, fingerprint
from tasks.training.validation import validate

__all__ = [
    "History",
    "Losses",
    "ResumePoint",
    "cosine",
    "fingerprint",
    "train",
    "validate",
]
