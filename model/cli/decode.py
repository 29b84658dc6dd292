"""`shape-tokenizer decode`: tokens to mesh files."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, fault_of_ours, is_of_environment
from ..files import write_whole
from ..jobs import GB, free_memory
from ..meshes import glb_bytes, obj_bytes, ply_bytes
from ..progress import track
from ..tokenizer import ShapeTokenizer
from ..tokens import Found, Tokens, count_shapes, inside, read_tokens
from ..vae import memory_to_decode
from .rejects import Rejects, say
from .tokenizer import load_tokenizer

_BYTES_OF = {"ply": ply_bytes, "glb": glb_bytes, "obj": obj_bytes}


def decode_files(
    tokens: Sequence[Path], out: Path, *, mesh_format: str, tokenizer: str | None, device: str | None
) -> int:
    """Write the mesh of every shape in these files and folders below `out`. Returns how many could not be decoded.

    Raises InputError where the tokenizer can't be used.
    """
    loaded = load_tokenizer(tokenizer, device)
    shapes = chain.from_iterable(read_tokens(path, loaded) for path in tokens)
    rejects = Rejects()
    written: set[Path] = set()
    for found in track(shapes, sum(map(count_shapes, tokens)), description="decode", unit="shape"):
        if found.note:
            say(f"note on {found.place}: {found.note}")
        try:
            written.add(_decode(found, loaded, out, mesh_format, written))
        except InputError as error:
            rejects.add(found.place, str(error))
        except Exception as error:  # one shape must not end the run, and its line says what happened
            if is_of_environment(error):
                raise
            rejects.add(found.place, fault_of_ours(error))
    rejects.conclude(f"decoded {len(written)} of {len(written) + rejects.num} into {out}")
    return rejects.num


def _decode(found: Found, tokenizer: ShapeTokenizer, out: Path, mesh_format: str, written: set[Path]) -> Path:
    """The file that it wrote. Raises InputError with the reason why there is none."""
    if found.tokens is None:
        raise InputError(found.reason)
    target = inside(out, f"{found.name}.{mesh_format}")
    if target in written:
        raise InputError(f"the name {found.name!r} was there before; expected each once; rename one")
    content = _BYTES_OF[mesh_format](*_mesh_of(found.tokens, tokenizer))
    try:
        write_whole(target, content)
    except OSError as error:
        if is_of_environment(error):
            raise
        raise InputError(f"no file can have the name {found.name!r} there ({error.strerror}); rename it") from error
    return target


def _mesh_of(tokens: Tokens, tokenizer: ShapeTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Vertices and faces. Raises InputError where there are none, or where there is too little memory for them."""
    on_cpu = tokenizer.device.type == "cpu"
    needed, free = memory_to_decode(tokens.coords, tokenizer.vqvae.vae.config), free_memory()
    if on_cpu and needed > free:
        raise InputError(
            f"decoding its {len(tokens):,} latent voxels takes about {needed / GB:.1f} GB of memory; "
            f"{free / GB:.1f} GB are free; drop the shape, or decode it on a machine with more"
        )
    try:
        mesh = tokenizer.decode(tokens)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"its {len(tokens):,} latent voxels do not fit into the GPU's memory; try --device cpu"
        ) from error
    if not len(mesh.faces):
        raise InputError("it decodes to no surface; expected one; these tokens make no shape")
    return mesh.vertices, mesh.faces
