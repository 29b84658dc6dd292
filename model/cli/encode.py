"""`shape-tokenizer encode`: mesh files to tokens."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import torch

from ..errors import InputError
from ..jobs import Limits
from ..progress import track
from ..tokenizer import ShapeTokenizer
from ..tokens import Tokens, check_target, write_tokens
from .inputs import in_order, named_files, voxelize_files
from .rejects import Rejects
from .tokenizer import load_tokenizer
from .voxelizing import Voxelized


def encode_files(
    meshes: Sequence[Path], out: Path, *, limits: Limits, tokenizer: str | None, device: str | None
) -> int:
    """Write the tokens of mesh files and of those in folders to `out`. Returns how many could not be encoded.

    Where none can be, as with a folder's name that is mistyped, what `out` holds of an earlier run stays.

    `limits` are those of reading and voxelizing one of them. Raises InputError where `out` or the tokenizer can't be
    used.
    """
    check_target(out)
    rejects = Rejects()
    files = named_files(meshes, rejects)
    loaded = load_tokenizer(tokenizer, device)
    num_tokens = num_encoded = 0

    def encoded() -> Iterator[tuple[str, Tokens]]:
        nonlocal num_tokens, num_encoded
        grids = track(voxelize_files(files, loaded, limits), len(files), description="encode", unit="file")
        for name, result in in_order(files, ((name, encode_grid(grid, loaded)) for name, grid in grids)):
            if isinstance(result, str):
                rejects.add(files[name], result)
            else:
                num_encoded, num_tokens = num_encoded + 1, num_tokens + len(result)
                yield name, result

    shapes = encoded()
    if (first := next(shapes, None)) is None:
        rejects.conclude(f"encoded 0 of {rejects.num}; nothing was written to {out}")
        return rejects.num
    write_tokens(out, chain([first], shapes), loaded)
    rejects.conclude(f"encoded {num_encoded} of {num_encoded + rejects.num} into {out}, {num_tokens} codes in all")
    return rejects.num


def encode_grid(result: Voxelized | str, tokenizer: ShapeTokenizer) -> Tokens | str:
    """The tokens, or the reason why there are none."""
    if isinstance(result, str):
        return result
    try:
        return tokenizer.encode(result.grid)
    except InputError as error:
        return str(error)
    except torch.OutOfMemoryError:
        return f"its {len(result.grid.coords):,} voxels do not fit into the GPU's memory; try --device cpu"
