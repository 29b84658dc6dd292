"""Independent jobs in processes that may die or hang, on this machine or a Dask cluster."""

from .fanout import GB, Failure, Limits, run_all

__all__ = [
    "GB",
    "Failure",
    "Limits",
    "run_all",
]
