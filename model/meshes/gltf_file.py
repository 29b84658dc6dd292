"""A glTF file: its document, of which the parts that decide its shape are read, and its buffers.

A document is as glTF 2.0 (Khronos, ISO/IEC 12113) says; defaults are the standard's. Buffers may be in the file, in the
document or in other files.
"""

import base64
import json
import posixpath
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from ..errors import InputError
from .raw import cut, damaged

MAGIC = b"glTF"
_HEADER = 12
_JSON, _BIN = b"JSON", b"BIN\0"
ReadFile = Callable[[str], bytes]  # the content of a file beside this one; its name is relative

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0)]  # into one of the document's lists
Vec3 = tuple[float, float, float]
Extensions = Annotated[dict[str, Any], Field(default_factory=dict)]


class _Part(BaseModel):
    """Its fields are the standard's keys, in snake_case."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, alias_generator=to_camel)
    extensions: Extensions


class Asset(_Part):
    version: str
    min_version: str | None = None


class Buffer(_Part):
    byte_length: Count
    uri: str | None = None


class BufferView(_Part):
    buffer: Index
    byte_offset: Count = 0
    byte_length: Count
    byte_stride: Count = 0  # 0 of what lies without gaps


class SparseValues(_Part):
    buffer_view: Index
    byte_offset: Count = 0


class SparseIndices(SparseValues):
    component_type: int


class Sparse(_Part):
    count: Count
    indices: SparseIndices
    values: SparseValues


class Accessor(_Part):
    buffer_view: Index | None = None
    byte_offset: Count = 0
    component_type: int
    normalized: bool = False
    count: Count
    type: str
    sparse: Sparse | None = None


class Draco(_Part):
    """The extension KHR_draco_mesh_compression of a primitive."""

    buffer_view: Index
    attributes: dict[str, int]  # unique numbers of attributes in the compressed piece


class Primitive(_Part):
    attributes: dict[str, Index]
    indices: Index | None = None
    mode: int = 4
    targets: tuple[dict[str, Index], ...] = ()


class MeshPart(_Part):
    primitives: tuple[Primitive, ...]
    weights: tuple[float, ...] = ()


class Node(_Part):
    name: str = ""
    children: tuple[Index, ...] = ()
    mesh: Index | None = None
    skin: Index | None = None
    matrix: Annotated[tuple[float, ...], Field(min_length=16, max_length=16)] | None = None  # column by column
    translation: Vec3 = (0.0, 0.0, 0.0)
    rotation: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0)  # x y z w
    scale: Vec3 = (1.0, 1.0, 1.0)
    weights: tuple[float, ...] = ()


class Skin(_Part):
    inverse_bind_matrices: Index | None = None
    joints: tuple[Index, ...]


class Scene(_Part):
    nodes: tuple[Index, ...] = ()


class Document(_Part):
    asset: Asset
    extensions_used: tuple[str, ...] = ()
    extensions_required: tuple[str, ...] = ()
    buffers: tuple[Buffer, ...] = ()
    buffer_views: tuple[BufferView, ...] = ()
    accessors: tuple[Accessor, ...] = ()
    meshes: tuple[MeshPart, ...] = ()
    nodes: tuple[Node, ...] = ()
    skins: tuple[Skin, ...] = ()
    scenes: tuple[Scene, ...] = ()
    scene: Index | None = None
    animations: tuple[dict[str, Any], ...] = ()


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


def item(items: tuple[T, ...], number: int, name: str) -> T:
    """One of the document's list of that name. Raises InputError if there is no such number."""
    if number >= len(items):
        raise damaged(f"it names {name}[{number}] but has {len(items)} of them")
    return items[number]


def parse_document(text: bytes) -> Document:
    """Raises InputError naming every key that is not as the standard says, and for other versions than 2."""
    try:
        document = Document.model_validate_json(text.decode("utf-8-sig", "replace"))
    except ValidationError as error:
        if (version := _old_version(text)) is None:
            problems = [_describe(detail) for detail in error.errors(include_url=False)]
            raise InputError(f"its JSON is not as glTF 2.0 says: {'; '.join(problems[:3])}; export it again") from error
    else:
        version = document.asset.min_version or document.asset.version
        if version.startswith("2"):
            return document
    raise InputError(f"it is glTF {version}; only glTF 2.0 is read; convert it to 2.0")


def _old_version(text: bytes) -> str | None:
    """Of glTF 1, whose lists are dictionaries; None for others."""
    try:
        document = json.loads(text)
        version = str(document["asset"]["version"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if version.startswith(("0", "1")) else None


def _describe(detail: ErrorDetails) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    return f"{place}: {detail['msg'][:1].lower()}{detail['msg'][1:]}" if place else detail["msg"]
