"""A glTF file: its JSON document and its buffers, which may be in it, in the JSON or in other files."""

import base64
import posixpath
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from ..errors import InputError
from .gltf_schema import Buffer, Document, parse_document
from .raw import cut, damaged

MAGIC = b"glTF"
_HEADER = 12
_JSON, _BIN = b"JSON", b"BIN\0"
ReadFile = Callable[[str], bytes]  # the content of a file beside this one; its name is relative


class Gltf(NamedTuple):
    document: Document
    chunk: bytes | None = None  # the binary one of a GLB
    num_after: int = 0  # bytes after the end of a GLB


def open_gltf(content: bytes) -> Gltf:
    """Of a .glb or a .gltf. Raises InputError where it is cut or its document is not as the standard says."""
    if not content.startswith(MAGIC):
        return Gltf(parse_document(content))
    version, length = (int.from_bytes(content[at : at + 4], "little") for at in (4, 8))
    if version != 2:
        raise InputError(f"it is GLB of version {version}; only version 2 (glTF 2.0) is read; convert it to 2.0")
    if length > len(content):
        raise cut(f"it says that it has {length} bytes but has {len(content)}")
    chunks = _chunks(content[:length])
    if not chunks or chunks[0][0] != _JSON:
        raise damaged("its first chunk is not the JSON document")
    binary = next((data for kind, data in chunks[1:] if kind == _BIN), None)
    return Gltf(parse_document(chunks[0][1].rstrip(b" \0")), binary, len(content) - length)


def _chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = list[tuple[bytes, bytes]](), _HEADER
    while place + 8 <= len(content):
        length = int.from_bytes(content[place : place + 4], "little")
        begin, end = place + 8, place + 8 + length
        if end > len(content):
            raise cut(f"a chunk of it says that it has {length} bytes but {len(content) - begin} are left")
        found.append((content[place + 4 : begin], content[begin:end]))
        place = end
    return found


def read_buffer(gltf: Gltf, number: int, read_file: ReadFile) -> bytes:
    """All declared bytes of a buffer. Raises InputError if there are fewer."""
    buffer = gltf.document.buffers[number]
    if (name := outside_file(buffer)) is not None:
        data, place = read_file(name), f"the file {name!r}"
    elif buffer.uri is not None:
        data, place = _inline(buffer.uri, number), "its data"
    elif number == 0 and gltf.chunk is not None and not _compressed(buffer):
        data, place = gltf.chunk, "its chunk"
    else:
        raise InputError(
            f"buffers[{number}] has no data in the file{_compressed(buffer)}; export it with all its data in it"
        )
    if len(data) < buffer.byte_length:
        raise cut(f"buffers[{number}] has {buffer.byte_length} bytes but {place} has {len(data)}")
    return data


def outside_files(document: Document) -> list[str]:
    """The files that buffers are in, relative to the document's folder."""
    return [name for buffer in document.buffers if (name := outside_file(buffer)) is not None]


def outside_file(buffer: Buffer) -> str | None:
    """The file that a buffer is in; None if it is in the document or beside it.

    Raises InputError for one that is not below the document's folder: what lies elsewhere is not watched for changes.
    """
    if buffer.uri is None or buffer.uri[:5].lower() == "data:":
        return None
    try:
        parts = urlsplit(buffer.uri)
    except ValueError:  # the host is none
        parts = urlsplit("..")
    name = posixpath.normpath(unquote(parts.path).replace("\\", "/"))
    if parts.scheme or parts.netloc or name.startswith(("/", "../")) or name in (".", "..") or "\0" in name:
        raise InputError(
            f"its data is at {buffer.uri[:80]!r}; expected a file below its own folder; export it as one .glb"
        )
    return name


def _inline(uri: str, number: int) -> bytes:
    head, _, data = uri.partition(",")
    try:
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(data)
        data = "".join(unquote(data).split()).rstrip("=")
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise cut(f"the data of buffers[{number}] is no base64 ({error})") from error


def _compressed(buffer: Buffer) -> str:
    names = [name for name in buffer.extensions if name.endswith("_meshopt_compression")]
    return f" but by {names[0]}, which is not decoded" if names else ""
