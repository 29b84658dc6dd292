"""The file in which stage 1 leaves its codebook, and import_vae that of a tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from model.errors import InputError
from model.tensors import read_tensors, write_tensors
from tasks.run import paths

CODEBOOK_FILE = paths.CODEBOOK / "codebook.safetensors"
IMPORTED_CODES = paths.VAE / "codebook.safetensors"
REMEDY = "run dvc repro -f stage1"

Codebooks = list[Float[Tensor, "_ dim"]]  # a tensor for each residual level, each with a size of its own


def save_codebooks(codebooks: Sequence[Tensor], directory: Path) -> None:
    write_tensors(directory / CODEBOOK_FILE.name, {f"level{i}": codes for i, codes in enumerate(codebooks, start=1)})


def load_codebooks(file: Path = CODEBOOK_FILE, *, remedy: str = REMEDY) -> Codebooks:
    """Raises InputError where the file is missing or damaged, or holds NaN or infinity."""
    tensors = read_tensors(file, remedy=remedy, ours=True).tensors
    if not tensors or tensors.keys() != {f"level{i}" for i in range(1, len(tensors) + 1)}:
        raise InputError(f"{file} holds {', '.join(tensors) or 'nothing'}; expected level1, level2 ...; {remedy}")
    return [tensors[f"level{i}"] for i in range(1, len(tensors) + 1)]


def imported_codes(sizes: Sequence[int]) -> Codebooks:
    """Those of the tokenizer that import_vae read. Raises InputError where there are none, or of other sizes."""
    if not IMPORTED_CODES.exists():
        raise InputError(
            "stage1.init is imported but import_vae.checkpoint holds no codes; name a tokenizer's folder there, or set "
            "stage1.init: kmeans"
        )
    codebooks = load_codebooks(IMPORTED_CODES, remedy="run dvc repro -f import_vae")
    if (found := [len(codes) for codes in codebooks]) != list(sizes):
        raise InputError(
            f"the tokenizer of import_vae.checkpoint has levels of {found} codes but codebook asks for {list(sizes)}; "
            f"set codebook.num_levels: {len(found)} and codebook.num_codes: {found}"
        )
    return codebooks
