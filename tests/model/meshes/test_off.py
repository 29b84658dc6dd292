"""OFF as text, in the dialects that programs write."""

import pytest

from model.errors import InputError
from tests.model.meshes.conftest import Load
from tests.model.meshes.truths import BOX, BOX_TRUTH, C_OUTLINE, C_TRUTH, QUADS, TRIANGLES, assert_truth, prism

V = [f"{x:g} {y:g} {z:g}" for x, y, z in BOX]
F = [f"4 {a} {b} {c} {d}" for a, b, c, d in QUADS]
MIXED = [*F[:3], *(f"3 {a} {b} {c}" for a, b, c in TRIANGLES[6:])]


def off(vertices: list[str] = V, faces: list[str] = F, header: str = "OFF\n{} {} 0") -> str:
    return "\n".join([header.format(len(vertices), len(faces)), *vertices, *faces]) + "\n"


DIALECTS = {
    "quads": off(),
    "triangles": off(faces=[f"3 {a} {b} {c}" for a, b, c in TRIANGLES]),
    "mixed": off(faces=MIXED),
    "counts on the first line": off(header="OFF {} {} 0"),
    "counts glued to the header": off(header="OFF{} {} 0"),
    "no edge count": off(header="OFF\n{} {}"),
    "counts on three lines": off(header="OFF\n{}\n{}\n0"),
    "lower case": off(header="off\n{} {} 0"),
    "no header": off(header="{} {} 0"),
    "comments and blank lines": "# made\n" + off().replace("\n", " # so\n\n  # 1 2 3\n"),
    "crlf": off().replace("\n", "\r\n"),
    "cr": off().replace("\n", "\r"),
    "byte order mark": "\ufeff" + off(),
    "no final newline": off().rstrip(),
    "colours of faces": off(faces=[f + " 255 0 0" for f in F]),
    "colours of some faces": off(faces=[f + " 0.5 0 0 1" * (i % 2) for i, f in enumerate(MIXED)]),
    "colours of vertices": off([v + " 255 0 0 255" for v in V], header="COFF\n{} {} 0"),
    "colours under the plain header": off([v + " 255 0 0" for v in V]),
    "normals": off([v + " 0 0 1" for v in V], header="NOFF\n{} {} 0"),
    "normals in lower case": off([v + " 0 0 1" for v in V], header="noff\n{} {} 0"),
    "all attributes": off([v + " 0 0 1 1 0 0 1 0.5 0.5" for v in V], header="STCNOFF\n{} {} 0"),
    "homogeneous": off([f"{2 * x} {2 * y} {2 * z} 2" for x, y, z in BOX], header="4OFF\n{} {} 0"),
    "a face over several lines": off().replace("4 0 2 3 1", "4 0\n2 3\n1"),
    "all numbers on a line": "OFF " + " ".join(off().split()[1:]),
    "a number on a line": "OFF\n" + "\n".join(off().split()[1:]),
    "tabs": off().replace(" ", "\t"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_are_read_right(load: Load, dialect: str) -> None:
    mesh = load(DIALECTS[dialect], "box.off")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.is_closed
    assert mesh.notes == ()


@pytest.mark.parametrize("first", [0, 3, 5])
def test_concave_caps(load: Load, first: int) -> None:
    vertices, polygons = prism([(float(x), float(y)) for x, y in C_OUTLINE], first)
    faces = [" ".join(map(str, (len(p), *p))) for p in polygons]
    assert_truth(load(off([f"{x} {y} {z}" for x, y, z in vertices], faces), "c.off"), C_TRUTH)


def test_edges_points_and_lines_after_the_end_are_noted(load: Load) -> None:
    mesh = load(off(faces=["2 0 1", "1 5", *F]) + "7 7 7\n", "box.off")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("points and edges among the faces ignored: 2", "lines after the last face ignored: 1")


REFUSED = {
    "declares 8 vertices and 6 faces but has 13 lines": "\n".join(off().splitlines()[:-1]),
    "line 11: face 0 is '4 0 2 3'; expected 5 numbers or more": off().replace("4 0 2 3 1", "4 0 2 3"),
    "line 16: face 5 is '4 1 3 7'": off().rstrip()[:-2],
    "line 3: vertex 0 is '0 0'; expected 3 numbers": off().replace("0 0 0\n", "0 0\n", 1),
    "names vertex 8": off().replace("4 0 2 3 1", "4 0 2 3 8"),
    "fractions": off().replace("4 0 2 3 1", "4 0 2 3.5 1"),
    "line 11: face 0 is '-4 0 2 3 1'": off().replace("4 0 2 3 1", "-4 0 2 3 1"),
    "line 11: face 0 is 'inf 0 2 3 1'": off().replace("4 0 2 3 1", "inf 0 2 3 1"),
    "huge numbers": off().replace("4 0 2 3 1", "4 0 2 3 inf"),
    "line 4: 'x' is no number": off().replace("1 0 0\n", "1 x 0\n", 1),
    "binary OFF": "OFF BINARY\n\0\0\0\10",
    "nOFF": off(header="nOFF\n3\n{} {} 0"),
    "read in two ways": off(header="OFF\n{} {} 0 0"),
    "no faces": off(faces=[]),
    "no OFF": "OFF\n-1 2 0\n",
    "first numbers": "OFF\n",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_whole_is_refused(load: Load, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load(REFUSED[reason], "box.off")


@pytest.mark.parametrize("value", ["nan", "-1.#IND", "1.#INF", "inf", "1e999"])
def test_values_that_are_no_numbers_cost_their_faces(load: Load, value: str) -> None:
    mesh = load(off([*V, f"9 {value} 9"], [*F, "3 0 1 8"]), "box.off")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("faces with NaN or infinite vertices dropped: 1",)
