"""The mesh files of a folder: their names, what their content depends on, and the memory that reading them takes."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from os import walk
from pathlib import Path

from ..errors import InputError, printable
from .gltf_file import MAGIC, outside_files, parse_document
from .gltf_primitive import DRACO
from .load import state_of

SUFFIXES = (".obj", ".stl", ".ply", ".glb", ".gltf", ".off")

_APPLE_DOUBLE = "._"  # begins the names of files in which macOS keeps what other file systems have no place for

# Peak memory of reading a file, per byte of it (measured, rounded up): a text says little per byte, a binary much.
_BYTES_A_BYTE = {".obj": 16, ".stl": 16, ".ply": 24, ".glb": 24, ".gltf": 24, ".off": 20}
_BYTES_A_COMPRESSED_BYTE = 250  # by Draco


def find_meshes(directory: Path) -> dict[str, Path]:
    """Every mesh file below a directory by name, which is its path in it, without suffix where no other needs that.

    Two files whose paths differ by the suffix alone keep it, as does a.obj.ply beside a.obj. Links are followed, to
    files and to folders, each folder once. What is no ordinary file is among them, for the reader to refuse; files
    that macOS makes beside others (._a.stl) are not.
    """
    files = sorted(path for path in _files_below(directory) if _is_mesh_name(path.name))
    full = [printable(path.relative_to(directory).as_posix()) for path in files]
    short = [printable(path.relative_to(directory).with_suffix("").as_posix()) for path in files]
    taken = Counter(short) + Counter(set(full))
    names = [stem if taken[stem] == 1 else name for stem, name in zip(short, full, strict=True)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:  # names that are no text, and read like others when made one
        raise InputError(f"two files in {directory} are called {repeated[0]!r} when written as text; rename one")
    return dict(zip(names, files, strict=True))


def irregular_files(directory: Path) -> dict[Path, str]:
    """What below a directory can't be read as a file, and why: pipes, sockets, links to nothing."""
    found = {}
    for path in sorted(_files_below(directory)):
        try:
            state_of(path)
        except InputError as error:
            found[path] = str(error)
        except OSError as error:
            found[path] = f"it can't be opened ({error.strerror}); remove it or mend the link"
    return found


def memory_to_load(path: Path) -> int:
    """About how many bytes of memory reading this file takes, by its size and its suffix."""
    size, suffix = state_of(path).size, path.suffix.lower()
    text = _gltf_text(path)
    size += sum((path.parent / name).stat().st_size for name in _named(text) if (path.parent / name).is_file())
    compressed = DRACO.encode() in text
    return size * (_BYTES_A_COMPRESSED_BYTE if compressed else _BYTES_A_BYTE.get(suffix, max(_BYTES_A_BYTE.values())))


def sha256_of(path: Path) -> str:
    """The hash of all that decides what is read: the file's content, and that of the files that a glTF names."""
    digest = _file_digest(path)
    names = _named(_gltf_text(path))
    if not names:
        return digest
    parts = [digest]
    for name in names:
        beside = path.parent / name
        parts += [name, _file_digest(beside) if beside.is_file() else "missing"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    state_of(path)  # opening a pipe would wait for a writer
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_mesh_name(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(_APPLE_DOUBLE)


def _files_below(directory: Path) -> Iterator[Path]:
    seen = set()
    for folder, folders, files in walk(directory, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link back up: it would never end
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(folder, name) for name in files)


def _gltf_text(path: Path) -> bytes:
    """The JSON of a glTF; nothing of other files."""
    with path.open("rb") as file:
        head = file.read(20)
        if head.startswith(MAGIC):
            return file.read(int.from_bytes(head[12:16], "little"))
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            return head + file.read()
    return b""


def _named(text: bytes) -> list[str]:
    """The files that a glTF of this JSON names; none where it can't be read, which the reader then says."""
    try:
        return outside_files(parse_document(text)) if text else []
    except InputError:
        return []
