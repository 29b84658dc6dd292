"""Random glTF in random dialects: the triangles that are read are those that numpy composes from what was written."""

import base64
import json
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from model.errors import InputError
from model.meshes import gltf
from tests.model.meshes.conftest import Load
from tests.model.meshes.gltf_writer import KINDS, TYPES, box_writer
from tests.model.meshes.truths import BOX_TRUTH, Truth, assert_truth

Draw = Callable[..., Any]
EXTENSIONS = ("KHR_mesh_quantization", "EXT_mesh_gpu_instancing")
TRIANGLES, STRIP, FAN = 4, 5, 6
SMALL = st.sampled_from([-2.0, -1.0, -0.5, 0.25, 1.0, 3.0])
ROTATIONS = st.sampled_from([(0, 0, 0, 1), (0.6, 0, 0, -0.8), (0.5, 0.5, -0.5, 0.5), (1, 0, 0, 0), (0.8, 0, 0.6, 0)])
TRANSFORM = {"translation": st.tuples(SMALL, SMALL, SMALL), "rotation": ROTATIONS, "scale": st.tuples(*[SMALL] * 3)}


def numbers(draw: Draw, num: int, type_: str) -> np.ndarray:
    """Of all values that a type of integers has."""
    size = num * np.dtype(type_).itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), type_)


class Scattered:
    """A document whose views lie in one to three buffers, and these in the GLB, in the JSON or in files."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.buffers = [bytearray() for _ in range(draw(st.integers(1, 3)))]
        self.document: dict[str, Any] = {"asset": {"version": "2.0"}, "extensionsUsed": list(EXTENSIONS)}
        self.document |= {key: [] for key in ("accessors", "bufferViews", "meshes", "nodes")}

    def _add(self, key: str, item: dict[str, Any]) -> int:
        self.document[key].append(item)
        return len(self.document[key]) - 1

    def view(self, data: bytes, **keys: Any) -> int:
        number = self.draw(st.integers(0, len(self.buffers) - 1))
        buffer = self.buffers[number]
        buffer += b"\xee" * (self.draw(st.sampled_from([0, 0, 4, 12])) + -len(buffer) % 4)
        keys |= {"buffer": number, "byteLength": len(data)}
        if buffer or self.draw(st.booleans()):
            keys["byteOffset"] = len(buffer)
        buffer += data
        return self._add("bufferViews", keys)

    def accessor(self, values: np.ndarray, *, strided: bool = False, **keys: Any) -> int:
        """Alone in its view, behind other bytes, or (if strided) between others; whole, or as a few that differ."""
        draw, whole = self.draw, np.ascontiguousarray(values).reshape(len(values), -1)
        keys |= {"componentType": TYPES[values.dtype.char], "count": len(whole), "type": KINDS[whole.shape[1]]}
        if draw(st.integers(0, 3)) == 0:
            if draw(st.booleans()):  # over zeros, which no view holds
                return self._add("accessors", keys | {"sparse": self._sparse(whole, np.flatnonzero(whole.any(1)))})
            differ = numbers(draw, len(whole), "u1") < 90
            keys["sparse"] = self._sparse(whole, np.flatnonzero(differ))
            whole = np.where(differ[:, None], whole.dtype.type(77), whole)
        size, before = whole.shape[1] * whole.itemsize, draw(st.sampled_from([0, 0, 4, 8]))
        after = draw(st.sampled_from([0, 4, 8])) if strided else 0
        stride = before + size + after + -(size + before + after) % 4
        if strided and (stride > size or draw(st.booleans())):
            rows = [b"\xcc" * before + row.tobytes() for row in whole]
            data = b"".join(row.ljust(stride, b"\xdd") for row in rows[:-1]) + rows[-1]  # the last one may end early
            view = self.view(data, byteStride=stride)
        else:
            view = self.view(b"\xcc" * before + whole.tobytes() + b"\xdd" * after)
        if before or draw(st.booleans()):
            keys["byteOffset"] = before
        return self._add("accessors", keys | {"bufferView": view})

    def _sparse(self, values: np.ndarray, rows: np.ndarray) -> dict[str, Any]:
        type_ = self.draw(st.sampled_from("BHI"))
        parts = {"indices": rows.astype(type_).tobytes(), "values": values[rows].tobytes()}
        if self.draw(st.booleans()):  # in one view
            first = parts["indices"].ljust(-(-len(parts["indices"]) // 4) * 4, b"\xbb")
            view = self.view(first + parts["values"])
            places: dict[str, Any] = {"indices": {"bufferView": view}}
            places["values"] = {"bufferView": view, "byteOffset": len(first)}
        else:
            places = {name: {"bufferView": self.view(part)} for name, part in parts.items()}
        places["indices"]["componentType"] = TYPES[type_]
        return {"count": len(rows), **places}

    def written(self, *, is_glb: bool) -> tuple[bytes, dict[str, bytes]]:
        """The file, and those beside it by name."""
        draw, beside, buffers = self.draw, dict[str, bytes](), list[dict[str, Any]]()
        for number, data in enumerate(self.buffers):
            data.extend(b"\0" * (not data))
            buffers.append({"byteLength": len(data)})
            if number or not is_glb or draw(st.booleans()):
                buffers[number]["uri"] = self._uri(bytes(data), number, beside)
        self.document["buffers"] = buffers
        text = json.dumps(self.document, indent=draw(st.sampled_from([None, 1])), ensure_ascii=draw(st.booleans()))
        if not is_glb:
            return draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\n "])) + text.encode(), beside
        chunks = [(b"JSON", text.encode(), b" ")]
        chunks += [] if "uri" in buffers[0] else [(b"BIN\0", bytes(self.buffers[0]), b"\0")]
        chunks += [(b"XTRA", b"1234", b"\0")] * draw(st.booleans())
        padded = [(kind, data + fill * (-len(data) % 4)) for kind, data, fill in chunks]
        body = b"".join(struct.pack("<I", len(data)) + kind + data for kind, data in padded)
        return struct.pack("<4sII", b"glTF", 2, 12 + len(body)) + body, beside

    def _uri(self, data: bytes, number: int, beside: dict[str, bytes]) -> str:
        match self.draw(st.sampled_from(["base64", "percent", "file"])):
            case "base64":
                kind = self.draw(st.sampled_from(["", "application/octet-stream", "application/gltf-buffer"]))
                return f"data:{kind};base64," + base64.b64encode(data).decode()
            case "percent":
                return "data:application/octet-stream," + quote(data)
        name = f"däta {number}.bin"
        beside[name] = data + b"more"
        return self.draw(st.sampled_from([name, quote(name), f"./{quote(name)}"]))


def matrix_of(node: dict[str, Any]) -> np.ndarray:
    """Of a matrix, or of translation, rotation and scale, as the standard writes them out."""
    if "matrix" in node:
        return np.array(node["matrix"]).reshape(4, 4).T
    x, y, z, w = node.get("rotation", (0, 0, 0, 1))
    turn = [
        [1 - 2 * y * y - 2 * z * z, 2 * x * y - 2 * z * w, 2 * x * z + 2 * y * w],
        [2 * x * y + 2 * z * w, 1 - 2 * x * x - 2 * z * z, 2 * y * z - 2 * x * w],
        [2 * x * z - 2 * y * w, 2 * y * z + 2 * x * w, 1 - 2 * x * x - 2 * y * y],
    ]
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.diag(node.get("scale", (1, 1, 1)))
    matrix[:3, 3] = node.get("translation", (0, 0, 0))
    return matrix


def triangles_of(mode: int, corners: np.ndarray) -> np.ndarray:
    """As the standard says: p_i = (v_i, v_(i+1+i%2), v_(i+2-i%2)) of a strip, (v_(i+1), v_(i+2), v_0) of a fan."""
    if mode == TRIANGLES:
        return corners.reshape(-1, 3)
    if mode == FAN:
        return np.array([(corners[i + 1], corners[i + 2], corners[0]) for i in range(len(corners) - 2)])
    return np.array([(corners[i], corners[i + 1 + i % 2], corners[i + 2 - i % 2]) for i in range(len(corners) - 2)])


def positions(writer: Scattered, num: int) -> tuple[int, np.ndarray]:
    """An accessor of random positions of any type, and what they mean."""
    type_, normalized = writer.draw(st.sampled_from("ffbBhH")), writer.draw(st.booleans())
    if type_ == "f":
        values = (numbers(writer.draw, 3 * num, "h") / 1024).astype("f").reshape(-1, 3)
        return writer.accessor(values, strided=True), values.astype(float)
    values = np.append([np.iinfo(type_).min], numbers(writer.draw, 3 * num - 1, type_)).reshape(-1, 3).astype(type_)
    means = np.maximum(values / np.iinfo(type_).max, -1.0) if normalized else values.astype(float)
    return writer.accessor(values, strided=True, normalized=normalized), means


def a_primitive(writer: Scattered, weights: list[float]) -> tuple[dict[str, Any], np.ndarray]:
    """With its triangles' corners."""
    draw = writer.draw
    mode = draw(st.sampled_from([TRIANGLES, TRIANGLES, STRIP, FAN]))
    num_corners = 3 * draw(st.integers(1, 5)) if mode == TRIANGLES else draw(st.integers(3, 9))
    type_ = draw(st.sampled_from(["", "B", "H", "I"]))
    num = draw(st.integers(3, 12)) if type_ else num_corners
    number, points = positions(writer, num)
    primitive: dict[str, Any] = {"attributes": {"POSITION": number}}
    corners = np.arange(num)
    if type_:
        corners = numbers(draw, num_corners, "B") % num
        primitive["indices"] = writer.accessor(corners.astype(type_))
    if mode != TRIANGLES or draw(st.booleans()):
        primitive["mode"] = mode
    if draw(st.booleans()):
        primitive["attributes"]["NORMAL"] = number
    for weight in weights:
        target, moves = positions(writer, num)
        primitive.setdefault("targets", []).append({"POSITION": target})
        points = points + weight * moves
    return primitive, points[triangles_of(mode, corners)]


def a_mesh(writer: Scattered) -> np.ndarray:
    """The corners of the triangles of all its primitives."""
    draw = writer.draw
    weights = draw(st.sampled_from([[], [], [0.5], [0.0, -1.0]]))
    pairs = [a_primitive(writer, weights) for _ in range(draw(st.integers(1, 3)))]
    primitives = [primitive for primitive, _ in pairs]
    for mode in draw(st.lists(st.integers(0, 3), max_size=1)):
        primitives.insert(0, {"attributes": primitives[0]["attributes"], "mode": mode})
    writer.document["meshes"].append({"primitives": primitives} | ({"weights": weights} if weights else {}))
    return np.concatenate([corners for _, corners in pairs])


def instances(writer: Scattered) -> tuple[dict[str, Any], list[np.ndarray]]:
    """An extension of a node, and the transforms that it means."""
    draw = writer.draw
    names = draw(st.lists(st.sampled_from(sorted(TRANSFORM)), min_size=1, unique=True))
    parts = draw(st.lists(st.fixed_dictionaries({name: TRANSFORM[name] for name in names}), min_size=1, max_size=3))
    attributes = {name.upper(): writer.accessor(np.array([part[name] for part in parts], "f")) for name in names}
    return {"EXT_mesh_gpu_instancing": {"attributes": attributes}}, [matrix_of(part) for part in parts]


@st.composite
def documents(draw: st.DrawFn, *, is_glb: bool | None = None) -> tuple[bytes, dict[str, bytes], np.ndarray]:
    """A file, those beside it, and the corners of the triangles that it shows."""
    writer = Scattered(draw)
    meshes = [a_mesh(writer) for _ in range(draw(st.integers(1, 2)))]
    nodes, worlds, shown, roots = writer.document["nodes"], list[np.ndarray](), list[np.ndarray](), list[int]()
    for number in range(draw(st.integers(1, 5))):
        node = draw(st.fixed_dictionaries({}, optional=TRANSFORM))
        if draw(st.booleans()):
            node = {"matrix": matrix_of(node).T.reshape(-1).tolist()}
        parent = draw(st.integers(-1, number - 1))
        worlds.append((worlds[parent] if parent >= 0 else np.eye(4)) @ matrix_of(node))
        if parent >= 0:
            nodes[parent].setdefault("children", []).append(number)
        else:
            roots.append(number)
        if number == 0 or draw(st.integers(0, 3)):
            node["mesh"] = draw(st.integers(0, len(meshes) - 1))  # several nodes may show it
            places = [np.eye(4)]
            if draw(st.integers(0, 3)) == 0:
                node["extensions"], places = instances(writer)
            for matrix in (worlds[-1] @ place for place in places):
                corners = meshes[node["mesh"]] @ matrix[:3, :3].T + matrix[:3, 3]
                shown.append(corners[:, ::-1] if np.linalg.det(matrix) < 0 else corners)
        nodes.append(node)
    nodes.append({"mesh": 0})  # in no scene, or in another one
    writer.document["scenes"] = [{"nodes": roots}]
    if draw(st.booleans()):
        writer.document["scenes"].insert(0, {"nodes": [len(nodes) - 1]})
        writer.document["scene"] = 1
    if draw(st.booleans()):
        writer.document["extensionsRequired"] = list(EXTENSIONS)
    content, beside = writer.written(is_glb=draw(st.booleans()) if is_glb is None else is_glb)
    return content, beside, np.concatenate(shown)


@settings(max_examples=60, deadline=None)
@given(documents())
def test_what_is_read_is_what_numpy_composes(document: tuple[bytes, dict[str, bytes], np.ndarray]) -> None:
    """As many triangles, each at its place and wound as it is: to each one belongs one that was written, and back."""
    content, beside, expected = document
    mesh = gltf.read(content, beside.__getitem__)
    found = mesh.vertices[mesh.faces].astype(float)
    assert found.shape == expected.shape
    turned = np.concatenate([np.roll(expected, shift, axis=1) for shift in range(3)]).reshape(-1, 9)
    tolerance = 1e-6 * (1 + np.abs(expected).max())
    assert cKDTree(turned).query(found.reshape(-1, 9))[0].max() < tolerance
    distances, _ = cKDTree(found.reshape(-1, 9)).query(turned)
    assert distances.reshape(3, -1).min(0).max() < tolerance


HOSTILE = st.sampled_from(
    [
        0,
        1,
        -1,
        7,
        2**31,
        2**63,
        10**30,
        0.5,
        1e300,
        1e-300,
        True,
        None,
        "",
        "x",
        "../x",
        "a\0",
        [],
        [0],
        [[]],
        {},
        {"a": 0},
    ]
)


def places(part: Any) -> list[tuple[Any, Any]]:
    """Every list or dictionary in a document with each of its keys."""
    keys = list(part) if isinstance(part, dict) else list(range(len(part))) if isinstance(part, list) else []
    return [(part, key) for key in keys] + [place for key in keys for place in places(part[key])]


@settings(max_examples=40, deadline=None)
@given(documents(is_glb=False), st.data())
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_documents_with_hostile_values_are_read_or_refused(
    document: tuple[bytes, dict[str, bytes], np.ndarray], data: st.DataObject
) -> None:
    content, beside, _ = document
    values = json.loads(content.decode("utf-8-sig"))
    for _ in range(data.draw(st.integers(1, 2))):
        part, key = data.draw(st.sampled_from(places(values)))
        if data.draw(st.integers(0, 3)):
            part[key] = data.draw(HOSTILE)
        else:
            del part[key]
    with suppress(InputError):
        mesh = gltf.read(json.dumps(values).encode(), lambda name: beside.get(name, b""))
        assert 0 <= mesh.faces.min() <= mesh.faces.max() < len(mesh.vertices)


def test_strides_that_overlap_are_refused_and_one_of_zero_is_none(load: Load) -> None:
    writer = box_writer()
    writer.document["bufferViews"][0]["byteStride"] = 0
    assert_truth(load(writer.glb(), "dense.glb"), BOX_TRUTH)
    writer.document["bufferViews"][0]["byteStride"] = 4
    with pytest.raises(InputError, match=r"elements of 12 bytes, which bufferViews\[0\] puts every 4 bytes"):
        load(writer.glb(), "overlapping.glb")


@pytest.mark.parametrize("uri", ["a\0b.bin", "//[x", "//a\u2100b/c.bin"])
def test_names_that_no_file_has_are_refused(load: Load, uri: str) -> None:
    with pytest.raises(InputError, match="expected a file below its own folder"):
        load(box_writer().gltf(uri), "named.gltf")


def test_a_name_too_long_for_a_file_is_refused(load: Load) -> None:
    with pytest.raises(InputError, match=r"in the file 'a{80}', which can't be opened \(File name too long\)"):
        load(box_writer().gltf("a" * 5000), "long.gltf")


def test_accessors_of_no_elements_may_begin_anywhere(load: Load) -> None:
    writer = box_writer()
    writer.document["accessors"].append({**writer.document["accessors"][1], "count": 0, "byteOffset": 9999})
    writer.document["meshes"][0]["primitives"].append({"attributes": {"POSITION": 0}, "indices": 2})
    assert_truth(load(writer.glb(), "box.glb"), BOX_TRUTH)


@pytest.mark.parametrize("length", [1e-200, 1e200])
def test_rotations_of_any_length_turn(load: Load, length: float) -> None:
    turned = load(box_writer(rotation=[length, 0, 0, length]).glb(), "turned.glb")
    assert_truth(turned, Truth(22, 6, (0, -3, 0), (1, 0, 2)))
