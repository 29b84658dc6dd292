"""Tensors in safetensors files, written whole, with a digest that is checked where they are read."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError, reading
from .files import DIGEST, digest_of, is_as_written, whole_file


class CheckpointError(InputError):
    """A file of weights cannot be used; the message names file and key."""


class Tensors(NamedTuple):
    tensors: dict[str, Tensor]
    digest: str


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values, wherever the tensors are."""

    def parts() -> Iterator[str | memoryview]:
        for name, tensor in sorted(tensors.items()):
            yield f"{name} {tensor.dtype} {list(tensor.shape)}"
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

    return digest_of(parts())


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them as they are, with their digest, which is returned."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    digest = digest_of_tensors(ready)
    with whole_file(path) as partial:
        try:
            save_file(ready, partial, {DIGEST: digest})
        except SafetensorError as error:  # a full disk, for one
            code = re.search(r"os error (\d+)", str(error))
            number = int(code[1]) if code else 0
            raise OSError(number, os.strerror(number) if code else str(error), str(path)) from error
    return digest


def read_tensors(path: Path, *, remedy: str, ours: bool) -> Tensors:
    """The tensors of a file, and their digest. One in the file is checked; `ours` has to have one, and finite values.

    Of ours, what was written in half precision is made float32, and the digest is of that. Raises CheckpointError,
    which ends in the remedy, where the file is missing, damaged or something else.
    """
    with reading(path, remedy, kind=CheckpointError):
        path.open("rb").close()  # where too many files are open, safetensors says that there is none
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        digest = digest_of_tensors(tensors)
    if not is_as_written(metadata, digest, required=ours):
        raise CheckpointError(f"{path}: its content is not what its digest says, it is damaged; {remedy}")
    if not ours:
        return Tensors(tensors, digest)
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float16):
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; expected torch.float32 or float16; {remedy}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; {remedy}")
    if any(tensor.dtype == torch.float16 for tensor in tensors.values()):
        tensors = {name: tensor.float() for name, tensor in tensors.items()}
        digest = digest_of_tensors(tensors)
    return Tensors(tensors, digest)
