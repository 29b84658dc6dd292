"""The training loop, the state from which it resumes, and validation."""

from tasks.training.loop import History, Losses, cosine, train
from tasks.training.resume import ResumePoint, fingerprint
from tasks.training.validation import Figures, mean_figures, validate, validate_each
