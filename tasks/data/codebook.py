"""The file in which stage 1 leaves its codebook."""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.errors import InputError
from tasks.run import CODEBOOK

CODEBOOK_FILE = CODEBOOK / "codebook.safetensors"


def save_codebook(codes: Float[Tensor, "codebook_size dim"], directory: Path) -> None:
    (directory / CODEBOOK_FILE.name).write_bytes(save({"codebook": codes.detach().cpu().contiguous()}))


def load_codebook() -> Float[Tensor, "codebook_size dim"]:
    """Raises InputError where the file is missing or damaged, or holds NaN or infinity."""
    try:
        codes = load_file(CODEBOOK_FILE)["codebook"]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{CODEBOOK_FILE}: no readable codebook ({error}); run dvc repro -f stage1") from error
    if not torch.isfinite(codes).all():
        raise InputError(f"{CODEBOOK_FILE} holds NaN or infinity; run dvc repro -f stage1")
    return codes
