"""PLY as text and binary, with the types, elements and properties that programs write."""

import numpy as np
import pytest

from model.errors import InputError
from tests.model.meshes.conftest import Load
from tests.model.meshes.ply_writer import FORMATS, MIXED, Dialect, Face, ply, rows
from tests.model.meshes.truths import BOX, BOX_TRUTH, C_OUTLINE, C_TRUTH, QUADS, TRIANGLES, assert_truth, prism


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("faces", [TRIANGLES, QUADS, MIXED], ids=["triangles", "quads", "mixed"])
@pytest.mark.parametrize("extra", [False, True])
def test_faces_of_any_size_beside_other_properties(load: Load, kind: str, faces: list[Face], extra: bool) -> None:
    mesh = load(ply(kind, faces=faces, dialect=Dialect(extra=extra)), "box.ply")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.is_closed
    assert mesh.notes == ()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("point", [("float", "f4"), ("double", "f8"), ("uchar", "u1"), ("int16", "i2")])
def test_types_and_order_of_coordinates(load: Load, kind: str, point: tuple[str, str]) -> None:
    assert_truth(load(ply(kind, dialect=Dialect(point=point, order="zxy")), "box.ply"), BOX_TRUTH)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [
        {"newline": b"\r\n"},
        {"newline": b"\r"},
        {"name": "vertex_index"},
        {"comment": "comment café"},
        {"comment": "comment element face 99"},
        {"comment": "obj_info num_cols 512"},
    ],
    ids=str,
)
def test_dialects_of_the_header(load: Load, kind: str, changes: dict) -> None:
    assert_truth(load(ply(kind, dialect=Dialect(**changes)), "box.ply"), BOX_TRUTH)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("first", [0, 3, 5])
def test_concave_caps(load: Load, kind: str, first: int) -> None:
    vertices, polygons = prism([(float(x), float(y)) for x, y in C_OUTLINE], first)
    mesh = load(ply(kind, vertices=vertices, faces=polygons), "c.ply")
    assert_truth(mesh, C_TRUTH)
    assert mesh.is_closed


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_headers_with_mixed_line_ends_and_the_format_last(load: Load, kind: str, newline: bytes) -> None:
    whole = ply(kind, dialect=Dialect(newline=newline))
    other = {b"\n": b"\r\n", b"\r\n": b"\n"}[newline]
    for line in (b"ply", b"comment made by a test", b"end_header"):
        assert_truth(load(whole.replace(line + newline, line + other), "box.ply"), BOX_TRUTH)
    line = b"format " + kind.encode() + b" 1.0" + newline
    assert_truth(load(whole.replace(line, b"").replace(b"end_header", line + b"end_header"), "box.ply"), BOX_TRUTH)


def test_faces_before_vertices_and_other_elements(load: Load) -> None:
    points = "".join(f"{x} {y} {z}\n" for x, y, z in BOX)
    text = (
        "ply\nformat ascii 1.0\nelement edge 2\nproperty int vertex1\nproperty int vertex2\nelement face 6\n"
        "property list uchar int vertex_indices\nelement camera 0\nproperty float f\nelement vertex 8\n"
        "property float x\nproperty float y\nproperty float z\nend_header\n0 1\n1 2\n"
        + "".join(f"4 {a} {b} {c} {d}\n" for a, b, c, d in QUADS)
        + points
    )
    mesh = load(text, "box.ply")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("rows of element edge ignored: 2",)


def test_a_face_may_take_several_lines_if_all_words_are_there(load: Load) -> None:
    plain = ply().decode()
    assert_truth(load(plain.replace("4 0 2 3 1", "4 0 2\n3 1"), "box.ply"), BOX_TRUTH)
    with pytest.raises(InputError, match="more words follow"):
        load(plain.replace("4 0 2 3 1", "4 0\n2 3"), "box.ply")


@pytest.mark.parametrize("kind", FORMATS)
def test_strips(load: Load, kind: str) -> None:
    strip = [0, 2, 1, 3, 7, 2, 6, 0, 4, 1, 5, 7, 4, 6, -1, 6, 4, 7, -1, 0, 1]  # a box, a face of it again, nothing
    table = [[(value, "f4") for value in vertex] for vertex in BOX] + [[(v, "i4") for v in (len(strip), *strip)]]
    header = (
        f"ply\nformat {kind} 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n"
        "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    )
    mesh = load(header.encode() + rows(kind, table), "box.ply")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.is_closed


@pytest.mark.parametrize("tail", [b"\n", b"\r\n\r\n", b"\0" * 12])
def test_blank_tails(load: Load, tail: bytes) -> None:
    for kind in FORMATS[1:]:
        mesh = load(ply(kind) + tail, "box.ply")
        assert_truth(mesh, BOX_TRUTH)
        assert mesh.notes == ()


def test_a_few_bytes_more_are_noted_and_many_refused(load: Load) -> None:
    assert load(ply(FORMATS[1]) + b"abc", "box.ply").notes == ("bytes after the last row ignored: 3",)
    with pytest.raises(InputError, match="26 bytes more than its header declares"):
        load(ply(FORMATS[1]) + b"x" * 26, "box.ply")
    with pytest.raises(InputError, match="more words follow the 17 rows"):
        load(ply() + b"3 0 1 2\n", "box.ply")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("faces", [TRIANGLES, MIXED], ids=["triangles", "mixed"])
def test_every_cut_is_noticed(load: Load, kind: str, faces: list[Face]) -> None:
    whole = ply(kind, faces=faces)
    if kind == "ascii":
        whole = whole.rstrip()
    for length in range(whole.index(b"end_header"), len(whole)):
        with pytest.raises(InputError):
            load(whole[:length], "box.ply")


REFUSED = {
    "names vertex 8 but": ply(faces=[*MIXED, (0, 1, 8)]),
    "names vertex -1 but": ply(faces=[*MIXED, (0, 1, -1)]),
    "no faces, only vertex \\(8\\), face \\(0\\)": ply(faces=[]),
    "line 3: got 'property float red'": b"ply\nformat ascii 1.0\nproperty float red\nend_header\n",
    "line 3: got 'element vertex many'": b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n",
    "line 4: got 'property other x'": b"ply\nformat ascii 1.0\nelement vertex 3\nproperty other x\nend_header\n",
    "line 2: got 'format binary_middle_endian 1.0'": b"ply\nformat binary_middle_endian 1.0\nend_header\n",
    "no line end_header": b"ply\nformat ascii 1.0\nelement vertex 3\n",
    "no line that begins with format": b"ply\nelement vertex 0\nend_header\n",
    "expected y among them, once": ply().replace(b"property float y", b"property float why"),
    "expected x among them, once": ply().replace(b"property float y", b"property float x"),
    "line 9: got 'property list float int vertex_indices'": ply(dialect=Dialect(count=("float", "f4"))),
    "no list called vertex_indices": ply(dialect=Dialect(name="corners")),
    "0 elements called vertex": ply().replace(b"element vertex", b"element vertices"),
    "2000000000 rows of element face": ply(FORMATS[1]).replace(b"element face 9", b"element face 2000000000"),
    "2000000000 rows of element vertex": ply(FORMATS[1]).replace(b"element vertex 8", b"element vertex 2000000000"),
    "1000000 rows of element vertex": ply().replace(b"element vertex 8", b"element vertex 1000000"),
    "9 rows of element face but the file ends after 3": ply(FORMATS[1], dialect=Dialect(count=("char", "i1"))).replace(
        b"\4\0\0\0\0\2", b"\xfc\0\0\0\0\2"
    ),
    "line 11: a row of element vertex has 4 words; .* declares 3": ply().replace(b"0.0 0.0 0.0", b"0.0 0.0 0.0 7"),
    "line 12: 'x' is no number": ply().replace(b"1.0 0.0 0.0", b"x 0.0 0.0", 1),
    "10{20} rows of element face": ply().replace(b"element face 9", b"element face 1" + b"0" * 20),
    "or huge numbers": ply().replace(b"4 0 2 3 1", b"4 0 2 3 inf"),
    "a list of 1e\\+18 values": ply().replace(b"4 0 2 3 1", b"1e18 0 2 3 1"),
    "fractions": ply().replace(b"4 0 2 3 1", b"4 0 2 3.5 1"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_as_declared_is_refused(load: Load, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load(REFUSED[reason], "box.ply")


@pytest.mark.parametrize("value", ["nan", "-1.#IND", "1.#INF", "inf", "1e300"])
def test_values_that_are_no_numbers_cost_their_faces(load: Load, value: str) -> None:
    """1e300 is more than the float that the header declares."""
    content = ply(vertices=np.vstack([BOX, [(9, 9, 8)]]), faces=[*TRIANGLES, (0, 1, 8)]).replace(
        b"9.0 9.0 8.0", f"9 {value} 8".encode()
    )
    mesh = load(content, "box.ply")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("faces with NaN or infinite vertices dropped: 1",)
