"""Random meshes written in random dialects of every format are read back as they are; damaged files never crash."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.errors import InputError
from model.meshes import Mesh, load_mesh
from model.meshes.cleaning import clean
from model.meshes.polygons import Polygons, triangulate
from tests.model.meshes.gltf_writer import box_writer
from tests.model.meshes.ply_writer import FORMATS, Dialect, Face, Value, ply, rows
from tests.model.meshes.test_obj import PLAIN as OBJ
from tests.model.meshes.test_off import off
from tests.model.meshes.test_stl import PLAIN as STL
from tests.model.meshes.test_stl import binary, facets

CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
often = settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)


@st.composite
def meshes(draw: st.DrawFn, *, max_size: int = 6) -> tuple[np.ndarray, list[Face]]:
    """Vertices that float32 holds exactly, and polygons of three to max_size different corners."""
    num = draw(st.integers(max_size, 20))
    numbers = st.integers(-4000, 4000).map(lambda n: n / 128)
    vertices = np.array(draw(st.lists(numbers, min_size=3 * num, max_size=3 * num, unique=True))).reshape(-1, 3)
    corners = st.lists(st.integers(0, num - 1), min_size=3, max_size=max_size, unique=True)
    return vertices, draw(st.lists(corners.map(tuple), min_size=1, max_size=12))


def expected(vertices: np.ndarray, faces: list[Face]) -> Mesh:
    """What the polygons are as a clean mesh."""
    corners = np.array([corner for face in faces for corner in face])
    return clean(vertices, triangulate(vertices, Polygons(corners, np.array(list(map(len, faces)))))[0])


def corners_of(mesh: Mesh) -> list[tuple]:
    """The triangles' coordinates, each from its least corner on, sorted."""
    found = mesh.vertices[mesh.faces].tolist()
    turned = (max([t, t[1:] + t[:1], t[2:] + t[:2]]) for t in found)
    return sorted(tuple(map(tuple, triangle)) for triangle in turned)


def read_back(folder: Path, content: bytes, suffix: str) -> Mesh:
    path = folder / f"mesh{suffix}"
    path.write_bytes(content)
    return load_mesh(path)


@st.composite
def obj_texts(draw: st.DrawFn, mesh: tuple[np.ndarray, list[Face]]) -> bytes:
    """Vertices in blocks before the faces that use them or all at the end; corners and attributes in every form."""
    vertices, faces = mesh
    lines, num_read = [], 0
    number = draw(st.sampled_from(["{!r}", "{:.8e}", "{:+.10f}"]))
    blank, newline = draw(st.sampled_from([" ", "  ", "\t", " \t "])), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    colour, behind = (
        draw(st.sampled_from(["", " 1 0.5 0", " 1"])),
        draw(st.sampled_from(["", "", " # v 1 2 3", "#f 1"])),
    )
    points = ["v " + " ".join(number.format(float(x)) for x in vertex) + colour + behind for vertex in vertices]
    forms = ["", "/1", "//1", "/1/1", "/-1/-1", "/", "//", "/1/"]
    ends = draw(st.lists(st.sampled_from(forms), min_size=1, max_size=3))
    at_the_end = draw(st.integers(0, 3)) == 0
    for i, face in enumerate(faces):
        if not at_the_end:
            lines += points[num_read : max(face) + 1]
            num_read = max(num_read, max(face) + 1)
        named = [corner - num_read if num_read and draw(st.booleans()) else corner + 1 for corner in face]
        words = [f"{corner}{ends[(i + j) % len(ends)]}" for j, corner in enumerate(named)]
        lines.append("f " + " ".join(words) + behind)
        lines += draw(st.sampled_from([[], ["# f 1 2 3"], ["g a", "s 1", "usemtl b#c"], ["vn 0 0 1", "vt 0 0"], [""]]))
    lines += points[num_read:]
    if draw(st.booleans()):  # continued lines
        lines = [line.replace(" ", " \\" + newline, i % 3) for i, line in enumerate(lines) if line[:2] in ("v ", "f ")]
    indent = draw(st.sampled_from(["", "", "  ", "\t"]))
    text = newline.join(indent + line.replace(" ", blank) for line in lines)
    text = draw(st.sampled_from(["", "\ufeff"])) + (text.upper() if draw(st.booleans()) else text)
    return text.encode() + draw(st.sampled_from([b"", newline.encode(), b" " + newline.encode() * 2]))


@often
@given(st.data())
def test_obj(tmp_path: Path, data: st.DataObject) -> None:
    mesh = data.draw(meshes())
    found = read_back(tmp_path, data.draw(obj_texts(mesh)), ".obj")
    assert corners_of(found) == corners_of(expected(*mesh))


COUNTS = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
COUNTS |= {f"{sign}int{8 * size}": f"{sign or 'i'}{size}" for sign in ("", "u") for size in (1, 2, 4)}
TYPES = {**COUNTS, "float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
Column = tuple[str, list[list[Value]]]  # of a PLY: what declares it, and its values row by row


def numbers(draw: st.DrawFn, types: dict[str, str]) -> tuple[str, str]:
    return draw(st.sampled_from(sorted(types.items())))


def ply_list(draw: st.DrawFn, name: str, values: list[tuple[int, ...]], types: dict[str, str]) -> Column:
    (count_name, count), (type_name, type_) = numbers(draw, COUNTS), numbers(draw, types)
    rows_ = [[(len(row), count), *((value, type_) for value in row)] for row in values]
    return f"property list {count_name} {type_name} {name}", rows_


def ply_element(
    draw: st.DrawFn, name: str, num_rows: int, columns: list[Column]
) -> tuple[list[str], list[list[Value]]]:
    """An element with these columns, and others around them: its lines of the header, and its rows."""
    for i in range(draw(st.integers(0 if columns else 1, 2))):
        if draw(st.booleans()):
            type_name, type_ = numbers(draw, TYPES)
            columns.append((f"property {type_name} other{i}", [[(row % 100, type_)] for row in range(num_rows)]))
        else:
            lengths = draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows))
            columns.append(ply_list(draw, f"other{i}", [(7,) * length for length in lengths], TYPES))
    columns = draw(st.permutations(columns))
    table = [[value for _, rows_ in columns for value in rows_[row]] for row in range(num_rows)]
    return [f"element {name} {num_rows}", *(line for line, _ in columns)], table


@often
@given(st.data())
def test_ply(tmp_path: Path, data: st.DataObject) -> None:
    """Elements and their properties in any order, of any type, beside others that nobody knows; strips."""
    draw, (vertices, faces) = data.draw, data.draw(meshes())
    points = []
    for axis in range(3):
        type_name, type_ = draw(st.sampled_from([("float", "f4"), ("float32", "f4"), ("double", "f8")]))
        points.append(
            (f"property {type_name} {'xyz'[axis]}", [[(value, type_)] for value in vertices[:, axis].tolist()])
        )
    in_strips = [face for face in faces if len(face) == 3] if draw(st.booleans()) else []
    polygons = [face for face in faces if face not in in_strips]
    strip = tuple(corner for face in in_strips for corner in (*face, -1))
    signed = {name: type_ for name, type_ in TYPES.items() if type_[0] != "u"}
    name = draw(st.sampled_from(["vertex_indices", "vertex_index"]))
    elements = [
        ply_element(draw, "vertex", len(vertices), points),
        ply_element(draw, "face", len(polygons), [ply_list(draw, name, polygons, TYPES)]),
        ply_element(draw, "edge", draw(st.integers(0, 3)), []),
    ]
    if in_strips:
        elements.append(ply_element(draw, "tristrips", 1, [ply_list(draw, name, [strip], signed)]))
    elements = draw(st.permutations(elements))
    kind, newline = draw(st.sampled_from(FORMATS)), draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    lines = ["ply", f"format {kind} 1.0", "obj_info a", "comment b", *(line for head, _ in elements for line in head)]
    text = newline.join(line.encode() for line in [*lines, "end_header", ""])
    content = text + b"".join(rows(kind, table, newline) for _, table in elements)
    assert corners_of(read_back(tmp_path, content, ".ply")) == corners_of(expected(vertices, polygons + in_strips))


@often
@given(st.data())
def test_off(tmp_path: Path, data: st.DataObject) -> None:
    vertices, faces = data.draw(meshes())
    colour = data.draw(st.sampled_from(["", " 255 0 0", " 0.5 0.5 0.5 1"]))
    kind = data.draw(st.sampled_from(["OFF", "OFF", "COFF", "NOFF", "CNOFF", "off", "noff", "STOFF", "4OFF", ""]))
    divisor = [4.0] if kind == "4OFF" else []
    rows = [" ".join(map(repr, row + divisor)) for row in (vertices * (divisor or [1.0])).tolist()]
    polygons = [" ".join(map(str, (len(face), *face))) + colour * data.draw(st.booleans()) for face in faces]
    behind = data.draw(st.sampled_from([" 1 1 1", " 0 0 1 0.5"])) if kind not in ("OFF", "off", "4OFF", "") else ""
    counts = data.draw(st.sampled_from(["\n{} {} 0", " {} {} 0", "{} {} 0", "\n{} {}", "\n\n# counts\n{} {} 99"]))
    text = off([row + behind for row in rows], polygons, kind + counts)
    if not (colour or behind) and data.draw(st.booleans()):  # a stream of numbers
        words = text[len(kind) :].replace("# counts\n", "").split()
        broken = data.draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words)))
        text = kind + " " + "".join(word + (" ", "\n")[b] for word, b in zip(words, broken, strict=True))
        if counts == "\n{} {}":
            return  # without an edge count only a line of two numbers says that there is none
    text = text.replace("\n", data.draw(st.sampled_from(["\n", "\r\n", "\r", " # comment\n"])))
    try:
        found = corners_of(read_back(tmp_path, text.encode(), ".off"))
    except InputError as error:
        found = str(error)  # in rare cases the breaks of lines say two things
    assert found == corners_of(expected(vertices, faces)) or "two ways" in found


@often
@given(st.data())
def test_stl(tmp_path: Path, data: st.DataObject) -> None:
    vertices, faces = data.draw(meshes(max_size=3))
    corners = vertices[np.array(faces)]
    if data.draw(st.booleans()):
        header = data.draw(st.binary(max_size=80) | st.sampled_from([b"{", b"OFF", b"glTF", b"ply\n", b"PK\x03\x04"]))
        content = binary(corners, header=header, tail=data.draw(st.binary(max_size=49)))
    else:
        name = data.draw(st.sampled_from(["", " a", " solid facet vertex 1 2 3"]))
        cut = data.draw(st.integers(0, len(corners)))  # into two solids
        parts = [f"solid{name}\n{facets(part)}endsolid{name}\n" for part in (corners[:cut], corners[cut:])]
        text = "".join(parts).replace("e+0", data.draw(st.sampled_from(["e+0", "E0", "e+00"])))
        text = text.replace("   ", data.draw(st.sampled_from(["   ", "\t", ""])))
        text = text.replace("end", data.draw(st.sampled_from(["end", "end "])))
        text = text.replace(" nan nan nan", data.draw(st.sampled_from([" nan nan nan", " 0 0 1", ""])))
        text = data.draw(st.sampled_from([str, str.upper, str.rstrip]))(text) + data.draw(st.sampled_from(["", "\0\0"]))
        content = text.replace("\n", data.draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n\t"]))).encode()
    found, whole = read_back(tmp_path, content, ".stl"), expected(vertices, faces)
    a, b = np.array(corners_of(found)), np.array(corners_of(whole))
    assert a.shape == b.shape
    assert np.abs(a - b).max() < 1e-5  # the text has seven digits


WHOLE = {
    ".obj": OBJ.encode(),
    ".stl": STL.encode(),
    ".b.stl": binary(),
    ".ply": ply(),
    ".l.ply": ply(FORMATS[1], dialect=Dialect(extra=True)),
    ".b.ply": ply(FORMATS[2]),
    ".off": off().encode(),
    ".glb": box_writer(translation=[1, 2, 3]).glb(),
    ".gltf": box_writer(rotation=[0, 0, 0, 1]).gltf(),
}


@pytest.mark.parametrize("suffix", WHOLE)
@often
@given(st.data())
def test_damaged_files_are_read_or_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Bytes changed, taken out, put in or doubled: a mesh of finite numbers, or a reason; nothing else."""
    content = bytearray(WHOLE[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["change", "remove", "insert", "cut", "repeat"])):
            case "change":
                content[at] = data.draw(st.integers(0, 255))
            case "remove":
                del content[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                content[at:at] = data.draw(
                    st.one_of(st.binary(max_size=5), st.sampled_from([b"999999999999", b"-", b"/"]))
                )
            case "cut":
                del content[max(1, at) :]
            case "repeat":
                content[at:at] = content[at : at + data.draw(st.integers(1, 60))]
        content = content or bytearray(b" ")
    try:
        mesh = read_back(tmp_path, bytes(content), suffix)
    except InputError as error:
        reason = str(error)
    else:
        reason = ""
    if reason:
        assert 10 < len(reason) < 400
        assert "\n" not in reason
        return
    assert np.isfinite(mesh.vertices).all()
    assert mesh.vertices.dtype == np.float64
    assert mesh.faces.dtype == np.int64
    assert len(mesh.faces) > 0
    assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)
