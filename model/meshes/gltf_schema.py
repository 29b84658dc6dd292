"""The parts of a glTF 2.0 document (Khronos, ISO/IEC 12113) that decide its shape. Defaults are the standard's."""

import json
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from ..errors import InputError
from .raw import damaged

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
        if (version := _old_version(text)) is not None:
            raise InputError(f"it is glTF {version}; only glTF 2.0 is read; convert it to 2.0") from error
        problems = [_describe(detail) for detail in error.errors(include_url=False)]
        raise InputError(f"its JSON is not as glTF 2.0 says: {'; '.join(problems[:3])}; export it again") from error
    if not (document.asset.min_version or document.asset.version).startswith("2"):
        version = document.asset.min_version or document.asset.version
        raise InputError(f"it is glTF {version}; only glTF 2.0 is read; convert it to 2.0")
    return document


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
