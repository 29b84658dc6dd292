"""Where stages compute, and how a GPU's memory is handed out there."""

import os

import torch

# Batches differ in size: in blocks of fixed sizes PyTorch reserved 57 GB for the 20 GB that were in use, in segments
# that grow 27 GB. It has to be known before anything is on the GPU.
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def pick_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
