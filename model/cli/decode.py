"""`shape-tokenizer decode`: tokens to mesh files."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from ..errors import InputError
from ..files import write_whole
from ..progress import track
from ..tokenizer import ShapeTokenizer
from ..tokens import Found, count_shapes, inside, read_tokens
from .rejects import Rejects
from .tokenizer import load_tokenizer


def decode_files(tokens: Sequence[Path], out: Path, *, mesh_format: str, tokenizer: str, device: str | None) -> int:
    """Write the mesh of every shape in these files and folders below `out`. Returns how many could not be decoded.

    Raises InputError where the tokenizer can't be used.
    """
    loaded = load_tokenizer(tokenizer, device)
    shapes = chain.from_iterable(read_tokens(path, loaded) for path in tokens)
    rejects = Rejects()
    written: set[Path] = set()
    for found in track(shapes, sum(map(count_shapes, tokens)), description="decode", unit="shape"):
        try:
            target = _decode(found, loaded, out, mesh_format, written)
        except InputError as error:
            rejects.add(f"{found.place}: {error}")
        else:
            written.add(target)
    rejects.conclude(f"decoded {len(written)} of {len(written) + rejects.num} into {out}")
    return rejects.num


def _decode(found: Found, tokenizer: ShapeTokenizer, out: Path, mesh_format: str, written: set[Path]) -> Path:
    """The file that it wrote. Raises InputError with the reason why there is none."""
    if found.tokens is None:
        raise InputError(found.reason)
    target = inside(out, f"{found.name}.{mesh_format}")
    if target in written:
        raise InputError(f"the name {found.name!r} was there before; expected each once; rename one")
    mesh = tokenizer.decode(found.tokens)
    if not len(mesh.faces):
        raise InputError("it decodes to no surface; expected one; these tokens make no shape")
    content = mesh.export(file_type=mesh_format)
    assert isinstance(content, (str, bytes))  # trimesh has formats that give a dict
    write_whole(target, content)
    return target
