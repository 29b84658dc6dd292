"""From a file to a mesh: its bytes, read once and whole, what they are, whatever the file is called, and its reader."""

import re
import stat
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, is_of_environment
from . import gltf, gltf_file, obj, off, ply, stl
from .cleaning import clean
from .mesh import Mesh
from .raw import RawMesh

_REGULAR = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
_HEAD = 2**16  # bytes that are looked at to see what a file is
_OBJ_VERTEX = re.compile(rb"(?m)^[ \t]*v[ \t]+[-+.\d]")

# What lies in a folder of meshes in a mesh's place, by how it begins: what it is, and what to do.
_STAND_INS = [
    (rb"version https://git-lfs", "a Git LFS pointer, not the mesh itself; run git lfs pull"),
    (
        rb"\s*<(!doctype html|html|head|body)\b",
        "a web page (HTML), as a failed download leaves it; download the mesh again",
    ),
    (rb"\x00\x05\x16[\x00\x07]", "metadata of macOS (AppleDouble, files that begin with ._), not the mesh; remove it"),
    (rb"PK\x03\x04", "a ZIP archive, as 3MF and USDZ are; unpack it, or convert it to GLB"),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "compressed; unpack it"),
    (rb"Kaydara FBX|;\s*FBX", "FBX; convert it to GLB"),
    (rb"\s*(<\?xml\b|<COLLADA|<X3D|<svg)", "XML, such as COLLADA or X3D; convert it to GLB"),
    (rb"BLENDER", "a Blender file; export it as GLB"),
    (rb"#(VRML|X3D|usda)|PXR-USDC|xof \d", "a scene in VRML, X3D, USD or DirectX; convert it to GLB"),
    (rb"ISO-10303-21", "STEP, which holds exact solids; export it as a triangle mesh"),
    (rb"# vtk DataFile|\$MeshFormat|MeshVersionFormatted", "a mesh of VTK, Gmsh or Medit; convert it to PLY"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0{4}", "a picture; remove it"),
    (rb"%PDF", "a PDF; remove it"),
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16; save it as ASCII or UTF-8"),
]


class ChangedError(InputError):
    """A file is being written: no verdict on its content, and another attempt may find it whole."""


class State(NamedTuple):
    """What changes when a file is written: two equal ones mean the same content."""

    device: int
    inode: int
    size: int
    changed_ns: int


def load_mesh(path: str | Path) -> Mesh:
    """All that a file's triangles and polygons say, as one clean mesh; its notes say what else there was.

    What the file is, its content says and not its suffix. Raises InputError with the reason where it can't be read
    whole, OSError where it is not there.
    """
    path = Path(path)
    content = _read_bytes(path)
    suffix = path.suffix.lower()
    found = _format_of(content, suffix)
    raw = _read(content, found, path.parent)
    named = {f"named {suffix or 'without a suffix'} but holds {found[1:].upper()}": int(found != suffix)}
    return clean(raw.vertices, raw.faces, {**named, **raw.notes})


def _read(content: bytes, found: str, folder: Path) -> RawMesh:
    match found:
        case ".stl":
            return stl.read_text(content) if _is_stl_text(content) else stl.read_binary(content)
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
        return _read_bytes(folder / name)
    except OSError as error:
        if is_of_environment(error, given=folder / name):
            raise
        raise InputError(
            f"its data is in the file {name[:80]!r}, which can't be opened ({error.strerror}); put it there"
        ) from error
    except InputError as error:
        raise type(error)(f"its data is in the file {name!r}: {error}") from error


def state_of(path: Path) -> State:
    """Of a file that can be read. Raises InputError for what is none, OSError where there is nothing."""
    status = path.stat()
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise InputError(
            f"it is {_REGULAR.get(kind, 'no file')}, no ordinary file; expected a mesh file; name one, or move it away"
        )
    return State(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _read_bytes(path: Path) -> bytes:
    """The file's content. Raises InputError for what is no ordinary file, ChangedError if it changes meanwhile."""
    before = state_of(path)
    content = path.read_bytes()
    if state_of(path) != before or len(content) != before.size:
        raise ChangedError("the file changed while it was read; wait until it is written, then run again")
    return content


def _format_of(content: bytes, suffix: str) -> str:
    """The suffix that says what the content is: ".obj", ".stl", ".ply", ".off", ".glb" or ".gltf".

    The content decides; `suffix`, in lower case, where it says nothing. Raises InputError for what is no mesh.
    """
    if not content:
        raise InputError("the file is empty; expected a mesh; export it again")
    if len(content) > stl.HEADER:  # then it is a binary STL whatever its header says; no text counts so few triangles
        declared = stl.declared_length(content)
        if declared == len(content) or (suffix == ".stl" and stl.HEADER < declared < len(content)):
            return ".stl"
    if content.startswith(gltf_file.MAGIC):
        return ".glb"
    if re.match(rb"(\xef\xbb\xbf)?ply[ \t]*[\r\n]", content):
        return ".ply"
    _refuse_stand_ins(content)
    if (found := _format_of_text(content, suffix)) is not None:
        return found
    if suffix in (".obj", ".off") or (suffix == ".stl" and b"\0" in content):
        return suffix
    line = {".ply": " with the line ply", ".glb": " with glTF", ".stl": " with solid"}.get(suffix, "")
    raise InputError(
        f"it does not begin as {suffix or 'a mesh'} does{line}, nor as another format that is read; export it again"
    )


def _is_stl_text(content: bytes) -> bool:
    """Whether this is STL as text: a binary one may begin with solid too, but has zeros in it."""
    return re.match(rb"(solid|facet)\b", _begin(content), re.IGNORECASE) is not None and b"\0" not in content.rstrip(
        b"\0"
    )


def _begin(content: bytes) -> bytes:
    return content[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip()


def _refuse_stand_ins(content: bytes) -> None:
    for begin, what in _STAND_INS:
        if re.match(begin, content[:_HEAD], re.IGNORECASE):
            raise InputError(f"it is {what}")
    if not content.strip(b"\0"):
        raise InputError("it holds nothing but zeros: it was never written to its end; copy or download it again")


def _format_of_text(content: bytes, suffix: str) -> str | None:
    begin = _begin(content)
    if begin.startswith(b"{"):
        return ".gltf"
    if _is_stl_text(content):
        return ".stl"
    if off.HEADER.match(re.sub(rb"^(\s*#[^\r\n]*[\r\n])+", b"", begin)):
        return ".off"
    if suffix != ".obj" and b"\0" not in begin and _OBJ_VERTEX.search(begin.replace(b"\r", b"\n")):
        return ".obj"
    return None
