"""glTF 2.0: what the standard says of scenes, nodes, accessors, primitives, skins and morph targets."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest

from model.errors import InputError
from model.meshes import load_mesh
from tests.model.meshes.conftest import Load
from tests.model.meshes.gltf_writer import Writer, box_writer
from tests.model.meshes.truths import BOX, BOX_TRUTH, TRIANGLES, TWO_BOXES, Truth, assert_truth

HALF_TURN_ABOUT_Z = [0, 0, 1, 0]
SHIFTED = Truth(22, 6, (5, 0, 0), (6, 2, 3))


def test_a_glb_a_gltf_and_one_with_its_buffer_beside_it_are_the_same(load: Load, tmp_path: Path) -> None:
    assert_truth(load(box_writer().glb(), "box.glb"), BOX_TRUTH)
    assert_truth(load(box_writer().gltf(), "box.gltf"), BOX_TRUTH)
    assert_truth(load(b"\xef\xbb\xbf\n" + box_writer().gltf(), "marked.gltf"), BOX_TRUTH)
    writer = Writer()
    writer.mesh({"attributes": {"POSITION": writer.positions()}, "indices": writer.indices(dtype="B")})
    writer.view(b"\xfb\xff\xbe" * 3 + b"\xff")
    base64 = b64encode(writer.data).decode()
    assert {"+", "/", "="} < set(base64)
    for data in (quote(base64, safe=""), base64.rstrip("="), base64.replace("A", "A\n")):
        assert_truth(load(writer.gltf(f"data:;base64,{data}"), "inline.gltf"), BOX_TRUTH)
    writer = box_writer()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bøx 1.bin").write_bytes(writer.data)
    assert_truth(load(writer.gltf("data/b%C3%B8x%201.bin"), "beside.gltf"), BOX_TRUTH)
    assert_truth(load(writer.gltf("./data/../data/bøx 1.bin"), "beside.gltf"), BOX_TRUTH)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("missing.bin", "'missing.bin', which can't be opened"),
        ("short.bin", "168 bytes but the file 'short.bin' has 10"),
        ("folder", "'folder': it is a folder"),
        ("../box.bin", "expected a file below its own folder"),
        ("/etc/box.bin", "expected a file below its own folder"),
        ("https://example.org/box.bin", "expected a file below its own folder"),
        ("data:application/octet-stream;base64,AAAAA", "no base64"),
        ("data:application/octet-stream;base64,AA!A", "no base64"),
        ("data:application/octet-stream;base64,AAAA", "168 bytes but its data has 3"),
    ],
)
def test_buffers_that_are_not_there(load: Load, tmp_path: Path, uri: str, reason: str) -> None:
    (tmp_path / "short.bin").write_bytes(b"0123456789")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=reason):
        load(box_writer().gltf(uri), "box.gltf")


TRANSFORMS: dict[str, tuple[dict[str, Any], Truth]] = {
    "translation": ({"translation": [5, 0, 0]}, SHIFTED),
    "matrix, column by column": ({"matrix": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1]}, SHIFTED),
    "rotation": ({"rotation": HALF_TURN_ABOUT_Z}, Truth(22, 6, (-1, -2, 0), (0, 0, 3))),
    "a rotation that is no unit": ({"rotation": [0, 0, 2, 0]}, Truth(22, 6, (-1, -2, 0), (0, 0, 3))),
    "scale": ({"scale": [2, 2, 2]}, Truth(88, 48, (0, 0, 0), (2, 4, 6))),
    "scaled, turned, moved": (
        {"scale": [2, 1, 1], "rotation": HALF_TURN_ABOUT_Z, "translation": [5, 0, 0]},
        Truth(32, 12, (3, -2, 0), (5, 0, 3)),
    ),
    "mirrored": ({"scale": [-1, 1, 1]}, Truth(22, 6, (-1, 0, 0), (0, 2, 3))),
    "mirrored twice": ({"scale": [-1, -1, 1]}, Truth(22, 6, (-1, -2, 0), (0, 0, 3))),
    "mirrored by a matrix": (
        {"matrix": [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]},
        Truth(22, 6, (0, 0, 0), (2, 1, 3)),
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_nodes_put_their_meshes_in_place(load: Load, kind: str) -> None:
    node, truth = TRANSFORMS[kind]
    assert_truth(load(box_writer(**node).glb(), "box.glb"), truth)
    writer = box_writer()
    writer.document["nodes"] = [{"children": [1]}, {**node, "children": [2]}, {"mesh": 0, "name": "child"}]
    mesh = load(writer.glb(), "child.glb")
    assert_truth(mesh, truth)
    assert mesh.is_closed


def test_many_nodes_may_show_a_mesh(load: Load) -> None:
    writer = box_writer()
    writer.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [6, 0, 0], "scale": [-1, 1, 1]}]
    writer.document["scenes"] = [{"nodes": [0, 1]}]
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, TWO_BOXES)
    assert mesh.notes == ()


def test_a_mesh_scaled_to_nothing_is_not_shown_and_one_flattened_is(load: Load) -> None:
    writer = box_writer()
    writer.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "scale": [0, 0, 0]}]
    writer.document["scenes"] = [{"nodes": [0, 1]}]
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("nodes scaled to nothing left out: 1",)
    flat = load(box_writer(scale=[1, 1, 0]).glb(), "flat.glb")
    assert np.ptp(flat.vertices, axis=0).tolist() == [1, 2, 0]


def test_the_default_scene_alone_is_read(load: Load) -> None:
    writer = box_writer()
    writer.document["nodes"] = [{"mesh": 0}, {"mesh": 0, "translation": [5, 0, 0]}, {"mesh": 0, "scale": [3, 3, 3]}]
    writer.document["scenes"] = [{"nodes": [0]}, {"nodes": [1]}]
    writer.document["scene"] = 1
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, SHIFTED)
    assert mesh.notes == ("meshes in other scenes or in none left out: 2",)
    del writer.document["scene"]
    assert_truth(load(writer.glb(), "first.glb"), BOX_TRUTH)
    writer.document["scenes"] = []
    writer.document["nodes"].pop()
    assert_truth(load(writer.glb(), "none.glb"), TWO_BOXES)


STRIP = [0, 2, 1, 3, 7, 2, 6, 0, 4, 1, 5, 7, 4, 6]


@pytest.mark.parametrize("indexed", ["B", "H", "I", ""])
@pytest.mark.parametrize("mode", [4, 5])
def test_triangles_and_strips(load: Load, indexed: str, mode: int) -> None:
    corners = np.array(STRIP if mode == 5 else TRIANGLES).reshape(-1)
    writer = Writer()
    primitive: dict[str, Any] = {"mode": mode}
    primitive["attributes"] = {"POSITION": writer.positions(BOX if indexed else BOX[corners])}
    if indexed:
        primitive["indices"] = writer.indices(corners, indexed)
    writer.mesh(primitive)
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.is_closed


def test_fans(load: Load) -> None:
    rim = [(1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0)]
    writer = Writer()
    sides = {"attributes": {"POSITION": writer.positions(np.array([(0, 0, 1.0), *rim, rim[0]]))}, "mode": 6}
    base = {"attributes": {"POSITION": writer.positions(np.array(rim[::-1], float))}, "mode": 6}
    writer.mesh(sides, base)
    mesh = load(writer.glb(), "pyramid.glb")
    assert_truth(mesh, Truth(2 + 2 * 3**0.5, 2 / 3, (-1, -1, 0), (1, 1, 1)))
    assert mesh.is_closed


def test_points_and_lines_beside_triangles_are_noted(load: Load) -> None:
    writer = Writer()
    box = writer.box()
    writer.mesh(box, *({**box, "mode": mode} for mode in (0, 1, 2, 3)), {"attributes": {"NORMAL": 0}})
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == (
        "primitives of points ignored: 1",
        "primitives of lines ignored: 3",
        "primitives without positions ignored: 1",
    )
    writer.document["meshes"][0]["primitives"] = [{**box, "mode": 1}]
    with pytest.raises(InputError, match="no triangles \\(primitives of lines ignored: 1\\)"):
        load(writer.glb(), "lines.glb")


@pytest.mark.parametrize("sparse_type", ["B", "H", "I"])
@pytest.mark.parametrize("has_base", [True, False])
def test_sparse_accessors(load: Load, sparse_type: str, has_base: bool) -> None:
    writer = Writer()
    moved = np.flatnonzero(BOX.any(1)) if not has_base else np.array([3, 7])
    base = BOX.copy()
    base[moved] = 9
    number = writer.positions(base)
    accessor = writer.document["accessors"][number]
    accessor["sparse"] = {
        "count": len(moved),
        "indices": {
            "bufferView": writer.view(moved.astype(sparse_type).tobytes()),
            "componentType": {"B": 5121, "H": 5123, "I": 5125}[sparse_type],
        },
        "values": {"bufferView": writer.view(BOX[moved].astype("f").tobytes())},
    }
    if not has_base:
        del accessor["bufferView"]
    writer.mesh({"attributes": {"POSITION": number}, "indices": writer.indices()})
    assert_truth(load(writer.glb(), "box.glb"), BOX_TRUTH)


def test_interleaved_accessors(load: Load) -> None:
    writer = Writer()
    data = np.concatenate([np.full((8, 2), 7), BOX, np.full((8, 1), 9)], 1).astype("f")
    view = writer.view(data.tobytes(), byteStride=24)
    writer.document["accessors"].append(
        {"bufferView": view, "byteOffset": 8, "componentType": 5126, "count": 8, "type": "VEC3"}
    )
    writer.mesh({"attributes": {"POSITION": 0}, "indices": writer.indices()})
    assert_truth(load(writer.glb(), "box.glb"), BOX_TRUTH)


def skinned(joints: np.ndarray, weights: np.ndarray, **keys: Any) -> Writer:
    """The box, shown by node 0, with a skin of nodes 1 and 2."""
    writer = Writer()
    attributes = {
        "POSITION": writer.positions(),
        "JOINTS_0": writer.accessor(joints),
        "WEIGHTS_0": writer.accessor(weights, **keys),
    }
    writer.mesh({"attributes": attributes, "indices": writer.indices()})
    inverse = np.tile(np.eye(4, dtype="f"), (2, 1, 1))
    inverse[1, 3, :3] = [0, 0, -3]  # column by column: a translation
    number = writer.accessor(inverse.reshape(2, 16))
    writer.document["skins"] = [{"joints": [1, 2], "inverseBindMatrices": number}]
    writer.document["nodes"] = [
        {"mesh": 0, "skin": 0, "translation": [9, 9, 9]},
        {"children": [2]},
        {"translation": [0, 0, 3]},
    ]
    writer.document["scenes"] = [{"nodes": [0, 1]}]
    return writer


JOINTS = np.where(BOX[:, 2:] > 0, [1, 0, 0, 0], [0, 0, 0, 0]).astype("B")  # the upper side follows node 2
ONE = np.tile(np.array([1, 0, 0, 0], "f"), (8, 1))


def test_skins_are_posed_as_their_joints_are(load: Load) -> None:
    writer = skinned(JOINTS, ONE)
    mesh = load(writer.glb(), "bound.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("primitives posed by their skins: 1",)
    writer.document["nodes"][2]["translation"] = [0, 0, 5]
    assert_truth(load(writer.glb(), "lifted.glb"), Truth(34, 10, (0, 0, 0), (1, 2, 5)))
    writer.document["nodes"][1]["scale"] = [-1, 1, 1]
    assert_truth(load(writer.glb(), "mirrored.glb"), Truth(34, 10, (-1, 0, 0), (0, 2, 5)))


@pytest.mark.parametrize(
    ("weights", "keys"),
    [
        (np.tile(np.array([0.5, 0.5, 0, 0], "f"), (8, 1)), {}),
        (np.tile(np.array([2.0, 2.0, 0, 0], "f"), (8, 1)), {}),
        (np.tile(np.array([127, 127, 0, 0], "B"), (8, 1)), {"normalized": True}),
    ],
)
def test_weights_are_shares(load: Load, weights: np.ndarray, keys: dict) -> None:
    both = np.tile(np.array([0, 1, 0, 0], "H"), (8, 1))
    writer = skinned(both, weights, **keys)
    writer.document["nodes"][2]["translation"] = [0, 4, 3]
    assert_truth(load(writer.glb(), "half.glb"), Truth(22, 6, (0, 2, 0), (1, 4, 3)))


def test_what_is_wrong_with_skins(load: Load) -> None:
    writer = skinned(JOINTS, ONE)
    del writer.document["skins"][0]["inverseBindMatrices"]
    assert_truth(load(writer.glb(), "unbound.glb"), Truth(40, 12, (0, 0, 0), (1, 2, 6)))
    for joints, weights, reason in (
        (JOINTS + np.uint8(1), ONE, "has 2"),
        (JOINTS, ONE * 0, "8 vertices of .* have no weights"),
        (JOINTS[:7], ONE, "as many JOINTS and WEIGHTS as vertices"),
    ):
        with pytest.raises(InputError, match=reason):
            load(skinned(joints, weights).glb(), "wrong.glb")
    writer = skinned(JOINTS, ONE)
    del writer.document["meshes"][0]["primitives"][0]["attributes"]["WEIGHTS_0"]
    with pytest.raises(InputError, match="only one of JOINTS_0 and WEIGHTS_0"):
        load(writer.glb(), "no_weights.glb")
    del writer.document["meshes"][0]["primitives"][0]["attributes"]["JOINTS_0"]
    assert_truth(load(writer.glb(), "no_joints.glb"), BOX_TRUTH)


def test_morph_targets_move_vertices_by_their_default_weights(load: Load) -> None:
    writer = Writer()
    top = np.where(BOX[:, 2:] > 0, [0, 0, 2.0], 0).astype("f")
    side = np.where(BOX[:, :1] > 0, [4.0, 0, 0], 0).astype("f")
    targets = [{"POSITION": writer.accessor(top)}, {"POSITION": writer.accessor(side)}, {"NORMAL": 0}]
    writer.mesh(writer.box(targets=targets), weights=[1, 0, 1])
    mesh = load(writer.glb(), "mesh.glb")
    assert_truth(mesh, Truth(34, 10, (0, 0, 0), (1, 2, 5)))
    assert mesh.notes == ("primitives morphed by their default weights: 1",)
    writer.document["nodes"][0]["weights"] = [0.5, 0.25, 0]
    assert_truth(load(writer.glb(), "node.glb"), Truth(40, 16, (0, 0, 0), (2, 2, 4)))
    writer.document["nodes"][0]["weights"] = [0, 0, 0]
    assert_truth(load(writer.glb(), "zero.glb"), BOX_TRUTH)
    writer.document["nodes"][0]["weights"] = [1]
    with pytest.raises(InputError, match="3 morph targets but 1 weights"):
        load(writer.glb(), "few.glb")


def change(writer: Writer, path: str, value: Any) -> bytes:
    *parts, last = path.split(".")
    at: Any = writer.document
    for part in parts:
        at = at[int(part)] if part.isdecimal() else at[part]
    at[int(last) if last.isdecimal() else last] = value
    return writer.glb()


REFUSED: dict[str, tuple[str, Any]] = {
    r"meshes\[0\].primitives\[0\] names vertex 8 but": ("accessors.0.count", 7),
    r"35 corners of triangles": ("accessors.1.count", 35),
    r"indices of .* has 40 elements of 2 bytes, which bufferViews\[1\] of 72 bytes can't hold": (
        "accessors.1.count",
        40,
    ),
    r"bufferViews\[0\] ends at byte 9999": ("bufferViews.0.byteLength", 9999),
    r"buffers\[0\] has 9999 bytes but its chunk has 168": ("buffers", [{"byteLength": 9999}]),
    r"it names accessors\[7\] but has 2": ("meshes.0.primitives.0.indices", 7),
    r"it names bufferViews\[7\] but has 2": ("accessors.0.bufferView", 7),
    r"it names buffers\[7\] but has 1": ("bufferViews.0.buffer", 7),
    r"it names meshes\[7\] but has 1": ("nodes.0.mesh", 7),
    r"it names nodes\[7\] but has 1": ("scenes.0.nodes", [7]),
    r"it names scenes\[7\] but has 1": ("scene", 7),
    r"it names skins\[7\] but has 0": ("nodes.0.skin", 7),
    r"unknown mode 7": ("meshes.0.primitives.0.mode", 7),
    r"POSITION of .* has type VEC2; expected VEC3": ("accessors.0.type", "VEC2"),
    r"unknown componentType 5127": ("accessors.0.componentType", 5127),
    r"indices of .* componentType 5122; expected unsigned": ("accessors.1.componentType", 5122),
    r"nodes\[0\] has two parents": ("nodes", [{}, {"children": [0]}, {"children": [0]}]),
    r"each other's parents": ("nodes", [{"children": [1]}, {"children": [0]}]),
    r"nodes.0.rotation": ("nodes.0.rotation", [0, 0, 1]),
    r"the rotation of nodes\[0\] is \[0.0, 0.0, 0.0, 0.0\]": ("nodes.0.rotation", [0, 0, 0, 0]),
    r"nodes\[0\].matrix is a projection": (
        "nodes.0.matrix",
        [*(1, 0, 0, 1), *(0, 1, 0, 0), *(0, 0, 1, 0), *(0, 0, 0, 1)],
    ),
    r"nodes.0.mesh: .*greater than or equal to 0": ("nodes.0.mesh", -1),
    r"accessors.0.count: field required": ("accessors.0", {"componentType": 5126, "type": "VEC3"}),
    r"POSITION of .* has no data": ("accessors.0", {"componentType": 5126, "type": "VEC3", "count": 8}),
    r"the indices of .* have no data": ("accessors.1", {"componentType": 5123, "type": "SCALAR", "count": 36}),
    r"glTF 1.0; only": ("asset", {"version": "1.0"}),
    r"glTF 3.0; only": ("asset", {"version": "2.0", "minVersion": "3.0"}),
    r"shows no triangles \(meshes in other scenes or in none left out: 1\)": ("scenes.0.nodes", []),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_as_the_standard_says_is_refused_in_its_words(load: Load, reason: str) -> None:
    writer = box_writer()
    if reason.startswith("meshes"):
        writer.document["accessors"][1]["count"] = 36
    if "names vertex 8" in reason:  # an index beyond, not a count
        writer = Writer()
        writer.mesh({"attributes": {"POSITION": writer.positions()}, "indices": writer.indices([(0, 1, 8)])})
        content = writer.glb()
    else:
        writer.glb()  # fills in the buffers
        content = change(writer, *REFUSED[reason])
    with pytest.raises(InputError, match=reason):
        load(content, "box.glb")


def test_every_cut_is_noticed(load: Load, tmp_path: Path) -> None:
    whole = box_writer().glb()
    path = tmp_path / "cut.glb"
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            load_mesh(path)
    text = box_writer().gltf()
    for length in range(1, len(text), 7):
        path.write_bytes(text[:length])
        with pytest.raises(InputError):
            load_mesh(path)


def test_other_documents_are_refused(load: Load) -> None:
    for content in (b"{}", b"[1]", b"{" * 100_000, json.dumps({"metadata": {"type": "Geometry"}}).encode()):
        with pytest.raises(InputError):
            load(content, "other.gltf")
    old = json.dumps({"asset": {"version": "1.0"}, "meshes": {"a": {}}, "accessors": {"b": {}}}).encode()
    with pytest.raises(InputError, match=r"glTF 1\.0"):
        load(old, "old.gltf")
    with pytest.raises(InputError, match="GLB of version 1"):
        load(b"glTF\1\0\0\0" + bytes(20), "old.glb")


def test_bytes_after_the_end_and_animations_are_noted(load: Load) -> None:
    writer = box_writer()
    writer.document["animations"] = [{"channels": [], "samplers": []}]
    mesh = load(writer.glb() + b"tail", "box.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("bytes after the end of the GLB ignored: 4", "animations ignored: 1")


def test_a_count_that_no_data_stands_behind_makes_no_room(load: Load) -> None:
    writer = box_writer()
    sparse = {"count": 0, "indices": {"bufferView": 0, "componentType": 5123}, "values": {"bufferView": 0}}
    writer.document["accessors"][0] = {"componentType": 5126, "type": "VEC3", "count": 10**12, "sparse": sparse}
    with pytest.raises(InputError, match="1000000000000 zeros in a file of 168 bytes"):
        load(writer.glb(), "box.glb")
