"""From a file to a mesh."""

from pathlib import Path

from ..errors import InputError, is_of_environment
from . import gltf, obj, off, ply, stl
from .cleaning import clean
from .content import format_of, is_stl_text, read_bytes
from .mesh import Mesh
from .raw import RawMesh


def load_mesh(path: str | Path) -> Mesh:
    """All that a file's triangles and polygons say, as one clean mesh; its notes say what else there was.

    What the file is, its content says and not its suffix. Raises InputError with the reason where it can't be read
    whole, OSError where it is not there.
    """
    path = Path(path)
    content = read_bytes(path)
    suffix = path.suffix.lower()
    found = format_of(content, suffix)
    raw = _read(content, found, path.parent)
    named = {f"named {suffix or 'without a suffix'} but holds {found[1:].upper()}": int(found != suffix)}
    return clean(raw.vertices, raw.faces, {**named, **raw.notes})


def _read(content: bytes, found: str, folder: Path) -> RawMesh:
    match found:
        case ".stl":
            return stl.read_text(content) if is_stl_text(content) else stl.read_binary(content)
        case ".ply":
            return ply.read(content)
        case ".obj":
            return obj.read(content)
        case ".off":
            return off.read(content)
        case _:
            return gltf.read(content, lambda name: _read_beside(folder, name))


def _read_beside(folder: Path, name: str) -> bytes:
    """A file that a glTF names. What is wrong with it, is wrong with the glTF."""
    try:
        return read_bytes(folder / name)
    except OSError as error:
        if is_of_environment(error, given=folder / name):
            raise
        raise InputError(
            f"its data is in the file {name[:80]!r}, which can't be opened ({error.strerror}); put it there"
        ) from error
    except InputError as error:
        raise type(error)(f"its data is in the file {name!r}: {error}") from error
