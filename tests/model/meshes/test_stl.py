"""STL, binary and as text, as programs write it and as it is cut short."""

import struct

import numpy as np
import pytest

from model.errors import InputError
from tests.model.meshes.conftest import Load
from tests.model.meshes.truths import BOX, BOX_TRUTH, TRIANGLES, Truth, assert_truth

CORNERS = BOX[np.array(TRIANGLES)]


def binary(corners: np.ndarray = CORNERS, *, header: bytes = b"", count: int | None = None, tail: bytes = b"") -> bytes:
    normals = np.full((len(corners), 1, 3), np.nan)  # nobody reads them
    rows = np.concatenate([normals, corners], 1).astype("<f4").reshape(-1, 12)
    records = b"".join(row.tobytes() + b"\7\0" for row in rows)
    return header.ljust(80, b" ") + struct.pack("<I", len(corners) if count is None else count) + records + tail


def facets(corners: np.ndarray = CORNERS) -> str:
    return "".join(
        " facet normal nan nan nan\n  outer loop\n"
        + "".join(f"   vertex {x:.6e} {y:.6e} {z:.6e}\n" for x, y, z in triangle)
        + "  endloop\n endfacet\n"
        for triangle in corners
    )


PLAIN = "solid box\n" + facets() + "endsolid box\n"
TEXTS = {
    "plain": PLAIN,
    "crlf": PLAIN.replace("\n", "\r\n"),
    "cr": PLAIN.replace("\n", "\r"),
    "byte order mark": "\ufeff" + PLAIN,
    "blank lines first": "\n \n" + PLAIN,
    "blanks first": "   " + PLAIN,
    "upper case": PLAIN.upper(),
    "no name": "solid\n" + facets() + "endsolid\n",
    "no indentation": "\n".join(line.strip() for line in PLAIN.splitlines()),
    "tabs": PLAIN.replace("   ", "\t"),
    "a name that looks like data": "solid vertex 1 2 3 facet\n" + facets() + "endsolid vertex 1 2 3",
    "two solids": "solid a\n" + facets(CORNERS[:5]) + "endsolid a\n\nsolid a\n" + facets(CORNERS[5:]) + "endsolid a\n",
    "an empty solid": "solid a\nendsolid a\n" + PLAIN,
    "all on one line": "solid box\n" + " ".join(facets().split()) + "\nendsolid box\n",
    "a facet on a line": "solid box\n"
    + facets().replace("\n", " ").replace("endfacet", "endfacet\n")
    + "endsolid box\n",
    "all on the first line": " ".join(PLAIN.split()),
    "no line solid": facets(),
    "zeros after the end": PLAIN + "\0" * 99,
    "keywords in two words": PLAIN.replace("endloop", "end loop").replace("endfacet", "end facet"),
    "outerloop": PLAIN.replace("outer loop", "outerloop"),
}


@pytest.mark.parametrize("dialect", TEXTS)
def test_texts_are_read_right(load: Load, dialect: str) -> None:
    mesh = load(TEXTS[dialect], "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ()


def test_latin1_names_are_read(load: Load) -> None:
    assert_truth(load(PLAIN.encode().replace(b"box", b"bo\xeete"), "box.stl"), BOX_TRUTH)


HEADERS = [b"", b"solid", b"solid x\nfacet normal 0 0 0\n", b"\0" * 80, b"COLOR=\1\2\3\4"]


@pytest.mark.parametrize("header", [*HEADERS, b"glTF", b"ply\n", b"<html>", b"PK\3\4", b"\nv 1 2 3\n", b"{"])
def test_a_binary_of_the_declared_length_is_one_whatever_its_header(load: Load, header: bytes) -> None:
    mesh = load(binary(header=header), "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ()


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("tail", [b"\n", b"trailer", b"\0" * 50, b"\0" * 149])
def test_binaries_are_read_whatever_their_header_and_a_short_tail(load: Load, header: bytes, tail: bytes) -> None:
    mesh = load(binary(header=header, tail=tail), "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == (f"bytes after the last triangle ignored: {len(tail)}",)


def test_what_lacks_only_endsolid_is_read_if_it_is_closed(load: Load) -> None:
    mesh = load("solid box\n" + facets(), "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("endsolid missing: 1",)


def test_other_lines_between_facets_are_noted(load: Load) -> None:
    mesh = load("solid box\ncolor 1 0 0\n" + facets() + "endsolid box\n", "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("lines that are no STL ignored: 1",)


REFUSED = {
    "ends after 6 facets without endsolid": "solid box\n" + facets(CORNERS[:6]),
    "ends where a line that begins with 'vertex' should follow": PLAIN[: PLAIN.index("vertex 0.0", 900) - 3],
    "line 5: a vertex has 2 numbers": PLAIN.replace("vertex 0.000000e+00 2.0", "vertex 2.0", 1),
    "line 5: '2,0' is no number": PLAIN.replace("2.000000e+00", "2,0", 1),
    "line 6: got 'endloop', expected a line that begins with 'vertex'": "solid box\n"
    + facets().replace("   vertex 1.000000e+00 2.000000e+00 0.000000e+00\n", "", 1),
    "line 2: got 'vertex": PLAIN.replace(" facet normal nan nan nan\n  outer loop\n", "", 1),
    "holds no faces": "solid box\nendsolid box\n",
    "says that it has 0 triangles but has room for 12": binary(count=0),
    "says that it has 6 triangles but has room for 12": binary(header=b"solid", count=6),
    "says that it has 100 triangles but has room for 12": binary(header=b"solid x\n", count=100),
    "says that it has 4294967295 triangles": binary(count=2**32 - 1),
    "says that it has 12 triangles but has room for 11.98": binary()[:-1],
    "no faces": binary(CORNERS[:0], header=b"x"),
    "does not begin as .stl does with solid": "this is no STL\n",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_whole_is_refused(load: Load, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load(REFUSED[reason], "box.stl")


def test_a_wrong_line_is_named_by_its_number(load: Load) -> None:
    broken = PLAIN.replace("endloop\n endfacet\nendsolid", "endfacet\nendsolid")
    with pytest.raises(InputError, match="line 84: got 'endfacet', expected a line that begins with 'endloop'"):
        load(broken, "broken.stl")


def test_two_boxes_side_by_side_keep_both(load: Load) -> None:
    both = np.concatenate([CORNERS, CORNERS + np.array([5, 0, 0])])
    assert_truth(load(binary(both), "boxes.stl"), Truth(44, 12, (0, 0, 0), (6, 2, 3)))


@pytest.mark.parametrize("value", ["nan", "-1.#IND", "1.#INF000e+00", "inf"])
def test_values_that_are_no_numbers_cost_their_facets(load: Load, value: str) -> None:
    spare = facets(CORNERS[:1] + 9).replace("vertex 9.000000e+00", f"vertex {value}", 1)
    mesh = load("solid box\n" + facets() + spare + "endsolid box\n", "box.stl")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("faces with NaN or infinite vertices dropped: 1",)
