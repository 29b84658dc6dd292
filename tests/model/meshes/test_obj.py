"""OBJ in the dialects that programs write."""

import numpy as np
import pytest

from model.errors import InputError
from tests.model.meshes.conftest import Load
from tests.model.meshes.truths import BOX, BOX_TRUTH, C_OUTLINE, C_TRUTH, QUADS, TRIANGLES, Truth, assert_truth, prism

TWO_BOXES = Truth(44, 12, (0, 0, 0), (6, 2, 3))
V = [f"v {x:g} {y:g} {z:g}" for x, y, z in BOX]
F = [f"f {a + 1} {b + 1} {c + 1} {d + 1}" for a, b, c, d in QUADS]
PLAIN = "\n".join(V + F) + "\n"


def attributed(end: str) -> list[str]:
    return ["f " + " ".join(f"{i + 1}{end}" for i in quad) for quad in QUADS]


def relative(polygons: list[tuple[int, ...]], num_read: int) -> list[str]:
    return ["f " + " ".join(str(i - num_read) for i in polygon) for polygon in polygons]


DIALECTS = {
    "plain": PLAIN,
    "triangles": "\n".join(V + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in TRIANGLES]),
    "crlf": PLAIN.replace("\n", "\r\n"),
    "cr": PLAIN.replace("\n", "\r"),
    "byte order mark": "\ufeff" + PLAIN,
    "tabs": PLAIN.replace(" ", "\t"),
    "many blanks": "\n\n   \n" + PLAIN.replace(" ", "   ").replace("\n", "  \n  \n\t"),
    "no final newline": PLAIN.rstrip(),
    "trailing comments": PLAIN.replace("\n", "  # v 9 9 9\n"),
    "comments that look like data": "# v 1 2 3\n#f 1 2 3\n" + PLAIN,
    "slashes": "\n".join([*V, "vt 0 0", "vn 0 0 1", *attributed("/1/1")]),
    "double slashes": "\n".join([*V, "vn 0 0 1", *attributed("//1")]),
    "one slash": "\n".join([*V, "vt 0 0", *attributed("/1")]),
    "mixed slashes": "\n".join([*V, "vt 0 0", F[0].replace(" 3", " 3/1").replace(" 2", " 2//1"), *F[1:]]),
    "colours": "\n".join([v + " 0.5 0.5 0.5" for v in V] + F),
    "some colours": "\n".join([v + " 0.5 0.5 0.5" * (i % 2) for i, v in enumerate(V)] + F),
    "weight 1": "\n".join([v + " 1.0" for v in V] + F),
    "signs and exponents": "\n".join([f"v +{x:.3e} {y:E} {z:+g}" for x, y, z in BOX] + F),
    "names": "\n".join(["o v 1 2 3", "mtllib a.mtl", *V, "g f 1 2 3", "usemtl v", "s off", *F]),
    "faces first": "\n".join(F + V),
    "relative": "\n".join(V + relative(QUADS, 8)),
    "continued": PLAIN.replace("f 1 3", "f 1 \\\n 3").replace("v 1 2", "v 1\\\n 2 "),
    "continued twice": PLAIN.replace("f 1 3 4", "f 1 \\\n 3 \\\r\n4"),
    "continued by nothing": PLAIN.rstrip() + " \\",
    "a name that ends with a backslash": "mtllib C:\\textures\\\n" + PLAIN + "# C:\\end\\\n" + "g end\\\n",
    "upper case": PLAIN.upper(),
    "fo": PLAIN.replace("f ", "fo "),
    "counts in comments": "# 8 vertices\n# Faces: 6\n#number of triangles: 12\n" + PLAIN,
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_dialects_are_read_right(load: Load, dialect: str) -> None:
    mesh = load(DIALECTS[dialect], "box.obj")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.is_closed
    assert mesh.notes == ()


def test_latin1_names_are_read(load: Load) -> None:
    assert_truth(load(b"# caf\xe9\no t\xeate\n" + PLAIN.encode(), "box.obj"), BOX_TRUTH)


SECOND = [f"v {x + 5:g} {y:g} {z:g}" for x, y, z in BOX]
BLOCKS = {
    "absolute": [*V, *F, *SECOND, *("f " + " ".join(str(i + 9) for i in quad) for quad in QUADS)],
    "relative": [*V, *relative(QUADS, 8), *SECOND, *relative(QUADS, 8)],
    "mixed in a face": [*V, *F, *SECOND, *(f"f {a + 9} {b - 8} {c + 9} {d - 8}" for a, b, c, d in QUADS)],
    "each triangle with its own vertices": [
        line
        for shift in (0, 5)
        for triangle in TRIANGLES
        for line in [*(f"v {BOX[i][0] + shift:g} {BOX[i][1]:g} {BOX[i][2]:g}" for i in triangle), "f -3 -2 -1"]
    ],
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_vertices_and_faces_may_alternate(load: Load, kind: str) -> None:
    mesh = load("\n".join(["o first", *BLOCKS[kind]]), "boxes.obj")
    assert_truth(mesh, TWO_BOXES)
    assert mesh.is_closed


@pytest.mark.parametrize("first", range(8))
def test_concave_caps_are_cut_right_from_any_corner(load: Load, first: int) -> None:
    vertices, polygons = prism([(float(x), float(y)) for x, y in C_OUTLINE], first)
    lines = [f"v {x} {y} {z}" for x, y, z in vertices]
    mesh = load("\n".join(lines + ["f " + " ".join(str(i + 1) for i in p) for p in polygons]), "c.obj")
    assert_truth(mesh, C_TRUTH)
    assert mesh.is_closed


def test_lines_and_points_are_noted(load: Load) -> None:
    mesh = load(PLAIN + "l 1 2\nl 3 4\np 1\nf 1 2\n", "box.obj")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("lines ignored: 2", "points ignored: 1", "points and edges among the faces ignored: 1")


def test_unknown_statements_and_weights_are_noted(load: Load) -> None:
    lines = [*(f"{v} 2" for v in V), "vendor_thing 1", *F]
    mesh = load("\n".join(lines), "box.obj")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("unknown statements vendor_thing ignored: 1", "weights of vertices ignored: 8")


@pytest.mark.parametrize(
    "value", ["nan", "-nan(ind)", "1.#IND", "-1.#IND00", "1.#QNAN", "1.#INF", "inf", "-Infinity", "1e999"]
)
def test_values_that_are_no_numbers_cost_their_faces(load: Load, value: str) -> None:
    lines = [*V, f"v 5 {value} 5", *F, "f 1 2 9"]
    mesh = load("\n".join(lines), "box.obj")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("faces with NaN or infinite vertices dropped: 1",)
    assert mesh.num_dropped == 1


REFUSED = {
    "line 9: a face names vertex 0": PLAIN.replace("f 1 3 4 2", "f 0 2 3 1"),
    "line 9: a face names vertex 99, but the file has 8": PLAIN.replace("f 1 3 4 2", "f 1 3 4 99"),
    "line 9: a face names vertex -9, but only 8": PLAIN.replace("f 1 3 4 2", "f 1 3 4 -9"),
    "line 11: a face names vertex 77": PLAIN.replace("f 1 3 4 2", "f 1 3\\\n 4 2").replace("f 5 6", "f 5 77"),
    "line 2: '1,0' is no number.*point": PLAIN.replace("v 1 0 0", "v 1,0 0 0"),
    "line 2: 'x' is no number": PLAIN.replace("v 1 0 0", "v 1 x 0"),
    "line 2: a vertex has 2 numbers": PLAIN.replace("v 1 0 0", "v 1 0"),
    "line 2: a vertex has 9 numbers": PLAIN.replace("v 1 0 0", "v 1 0 0 0 0 0 0 0 0"),
    "line 9: '1.5' is no corner": PLAIN.replace("f 1 3 4 2", "f 1.5 3 4 2"),
    "line 9: '/1' is no corner": PLAIN.replace("f 1 3 4 2", "f /1 3 4 2"),
    "line 1: '12 13' is no statement": "12 13\n" + PLAIN,
    "line 15: 'surf' is a free-form surface": PLAIN + "surf 0 1 0 1 1 2 3 4\n",
    "line 15: 'call' is a call of another file": PLAIN + "call other.obj\n",
    "no faces": "\n".join(V),
    "no faces; expected .* three vertices": "\n".join([*V, "f 1 2", "f 1", "f"]),
    "ends within a face, after 2 corners": PLAIN + "f 1 2",
    "comments say that it has 9 vertices but it has 8": "# 9 vertices\n" + PLAIN,
    "comments say that it has 13 triangles but it has 12": "# Triangles: 13\n" + PLAIN,
    "byte 3 is 0": "v 1\0" + PLAIN,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_whole_is_refused_with_its_line(load: Load, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load(REFUSED[reason], "box.obj")


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_numbers_are_read_to_the_last_bit(load: Load, scale: float) -> None:
    points = np.random.default_rng(0).normal(size=(60, 3)) * scale
    text = "".join(f"v {x!r} {y!r} {z!r}\n" for x, y, z in points.tolist())
    mesh = load(text + "".join(f"f {i + 1} {i + 2} {i + 3}\n" for i in range(0, 60, 3)), "soup.obj")
    assert set(map(tuple, mesh.vertices.tolist())) == set(map(tuple, points.tolist()))
