"""The file in which stage 1 leaves its codebook."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.errors import InputError
from tasks.run import CODEBOOK

CODEBOOK_FILE = CODEBOOK / "codebook.safetensors"
VALIDATION_FILE = "validation.json"  # beside trained weights: figures of each validation shape, before and after


Codebooks = list[Float[Tensor, "_ dim"]]  # a tensor for each residual level, each with a size of its own


def save_codebooks(codebooks: Sequence[Tensor], directory: Path) -> None:
    tensors = {f"level{i}": codes.detach().cpu().contiguous() for i, codes in enumerate(codebooks, start=1)}
    (directory / CODEBOOK_FILE.name).write_bytes(save(tensors))


def load_codebooks() -> Codebooks:
    """Raises InputError where the file is missing or damaged, or holds NaN or infinity."""
    try:
        tensors = load_file(CODEBOOK_FILE)
        codebooks = [tensors[f"level{i}"] for i in range(1, max(len(tensors), 1) + 1)]
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(f"{CODEBOOK_FILE}: no readable codebook ({error}); run dvc repro -f stage1") from error
    if not all(codes.isfinite().all() for codes in codebooks):
        raise InputError(f"{CODEBOOK_FILE} holds NaN or infinity; run dvc repro -f stage1")
    return codebooks
