"""Independent jobs in processes that may die or hang, on this machine or a Dask cluster."""

from .fanout import GB, Failure, Limits, free_memory, run_all

__all__ = ["GB", "Failure", "Limits", "free_memory", "run_all"]
