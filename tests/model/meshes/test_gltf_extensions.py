"""glTF's extensions: those that are read, those that change only looks, and those that are refused by name."""

import DracoPy
import numpy as np
import pytest

from model.errors import InputError
from tests.model.meshes.conftest import Load
from tests.model.meshes.gltf_writer import Writer, box_writer
from tests.model.meshes.truths import BOX, BOX_TRUTH, TRIANGLES, TWO_BOXES, Truth, assert_truth


def test_hidden_nodes_and_what_is_below_them_are_left_out(load: Load) -> None:
    writer = box_writer()
    hidden = {"KHR_node_visibility": {"visible": False}}
    writer.document["nodes"] = [
        {"mesh": 0, "extensions": {"KHR_node_visibility": {"visible": True}}},
        {"mesh": 0, "extensions": hidden, "children": [2]},
        {"mesh": 0, "translation": [5, 0, 0]},
    ]
    writer.document["scenes"] = [{"nodes": [0, 1]}]
    writer.document |= {"extensionsUsed": ["KHR_node_visibility"], "extensionsRequired": ["KHR_node_visibility"]}
    mesh = load(writer.glb(), "box.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("nodes hidden by KHR_node_visibility left out: 2",)


@pytest.mark.parametrize("dtype", ["b", "B", "h", "H"])
@pytest.mark.parametrize("normalized", [True, False])
def test_quantized_positions(load: Load, dtype: str, normalized: bool) -> None:
    """Of the unit cube about 0, or in its first octant for unsigned types; the least signed value means -1 as well."""
    largest, least = np.iinfo(dtype).max, np.iinfo(dtype).min
    signs = BOX / [1, 2, 3]
    values = np.where(signs > 0, largest if normalized else 100, least if normalized else 0).astype(dtype)
    writer = Writer()
    number = writer.accessor(values, stride=4 * values.itemsize, normalized=normalized)
    writer.mesh({"attributes": {"POSITION": number}, "indices": writer.indices()})
    low = -1.0 if normalized and least else 0.0
    size = (1.0 if normalized else 100.0) - low
    writer.document["nodes"] = [{"mesh": 0, "translation": [-low] * 3}]
    writer.document |= {"extensionsUsed": ["KHR_mesh_quantization"], "extensionsRequired": ["KHR_mesh_quantization"]}
    truth = Truth(6 * size**2, size**3, (0, 0, 0), (size,) * 3)
    assert_truth(load(writer.glb(), "box.glb"), truth, 1e-3)


@pytest.mark.parametrize("required", [True, False])
def test_instances(load: Load, required: bool) -> None:
    writer = Writer()
    writer.mesh(writer.box())
    attributes = {
        "TRANSLATION": writer.accessor(np.array([[0, 0, 0], [6, 0, 0], [0, 5, 0]], "f")),
        "ROTATION": writer.accessor(np.array([[0, 0, 0, 127], [0, 0, 0, 127], [0, 0, 127, 0]], "b"), normalized=True),
        "SCALE": writer.accessor(np.array([[1, 1, 1], [-1, 1, 1], [-1, 1, 1]], "f")),
    }
    extension = {"EXT_mesh_gpu_instancing": {"attributes": attributes}}
    writer.document["nodes"] = [{"mesh": 0, "extensions": extension, "translation": [0, 0, 7]}]
    writer.document["extensionsUsed"] = list(extension)
    writer.document["extensionsRequired"] = list(extension) if required else []
    assert_truth(load(writer.glb(), "box.glb"), Truth(66, 18, (0, 0, 7), (6, 5, 10)))
    for name in ("TRANSLATION", "ROTATION", "SCALE"):  # each alone is allowed
        alone = {"EXT_mesh_gpu_instancing": {"attributes": {name: attributes[name]}}}
        writer.document["nodes"] = [{"mesh": 0, "extensions": alone}]
        load(writer.glb(), "alone.glb")
    writer.document["accessors"][attributes["SCALE"]]["count"] = 2
    writer.document["nodes"] = [{"mesh": 0, "extensions": extension}]
    with pytest.raises(InputError, match=r"EXT_mesh_gpu_instancing of nodes\[0\] have \[2, 3\] elements"):
        load(writer.glb(), "uneven.glb")


def draco(data: bytes, *, required: bool = True, fallback: bool = False, attribute: int = 0) -> Writer:
    """The box as it is compressed, beside another one 5 to the right that is not."""
    decoded = DracoPy.decode(data)
    writer = Writer()
    extension = {"KHR_draco_mesh_compression": {"bufferView": writer.view(data), "attributes": {"POSITION": attribute}}}
    if fallback:
        first = writer.box(extensions=extension)
    else:
        writer.document["accessors"] += [
            {"componentType": 5126, "count": len(decoded.points), "type": "VEC3"},
            {"componentType": 5125, "count": decoded.faces.size, "type": "SCALAR"},
        ]
        first = {"attributes": {"POSITION": 0}, "indices": 1, "extensions": extension}
    second = {"attributes": {"POSITION": writer.positions(BOX + np.array([5, 0, 0]))}, "indices": writer.indices()}
    writer.mesh(first, second)
    writer.document["extensionsUsed"] = list(extension)
    writer.document["extensionsRequired"] = list(extension) if required else []
    return writer


COMPRESSED = DracoPy.encode(BOX, np.array(TRIANGLES, np.uint32), quantization_bits=16)


@pytest.mark.parametrize("required", [True, False])
def test_draco_is_decoded(load: Load, required: bool) -> None:
    mesh = load(draco(COMPRESSED, required=required).glb(), "boxes.glb")
    assert_truth(mesh, TWO_BOXES, 1e-2)
    assert mesh.is_closed


def test_draco_with_other_attributes_than_positions(load: Load) -> None:
    """Normals make corners of one place differ, and the order of vertices is the decoder's."""
    normals = np.random.default_rng(0).normal(size=(36, 3))
    corners = BOX[np.array(TRIANGLES).reshape(-1)]
    data = DracoPy.encode(corners, np.arange(36, dtype=np.uint32).reshape(-1, 3), quantization_bits=16, normals=normals)
    attributes = {one["attribute_type"]: one["unique_id"] for one in DracoPy.decode(data).attributes}
    assert attributes[0] != 0  # positions are not the first
    assert_truth(load(draco(data, attribute=attributes[0]).glb(), "boxes.glb"), TWO_BOXES, 1e-2)


def test_draco_beside_the_same_uncompressed(load: Load) -> None:
    """The compressed piece is read if the document requires it, else the plain one, which is exact."""
    smaller = DracoPy.encode(BOX / 2, np.array(TRIANGLES, np.uint32), quantization_bits=16)
    assert_truth(load(draco(smaller, required=False, fallback=True).glb(), "plain.glb"), TWO_BOXES)
    if len(DracoPy.decode(smaller).points) == 8:
        assert load(draco(smaller, fallback=True).glb(), "required.glb").vertices.min() == 0


def test_damaged_draco_is_refused_by_name(load: Load) -> None:
    for data in (COMPRESSED[:20], b"DRACO" + bytes(100), bytes(100)):
        writer = draco(COMPRESSED)
        writer.document["meshes"][0]["primitives"][0]["extensions"]["KHR_draco_mesh_compression"]["bufferView"] = (
            writer.view(data)
        )
        with pytest.raises(InputError, match="KHR_draco_mesh_compression"):
            load(writer.glb(), "damaged.glb")
    writer = draco(COMPRESSED)
    writer.document["accessors"][0]["count"] += 1
    with pytest.raises(InputError, match=r"declares .* values of POSITION"):
        load(writer.glb(), "more.glb")
    writer = draco(COMPRESSED)
    writer.document["accessors"][1]["count"] += 3
    with pytest.raises(InputError, match=r"declares .* indices"):
        load(writer.glb(), "more.glb")
    with pytest.raises(InputError, match="values of POSITION"):
        load(draco(COMPRESSED, attribute=77).glb(), "other.glb")


def test_extensions_that_are_not_read(load: Load) -> None:
    writer = box_writer()
    writer.document["extensionsUsed"] = ["KHR_materials_ior", "VENDOR_shape", "KHR_texture_transform"]
    mesh = load(writer.glb(), "used.glb")
    assert_truth(mesh, BOX_TRUTH)
    assert mesh.notes == ("extension VENDOR_shape, which is not required, ignored: 1",)
    writer.document["extensionsRequired"] = ["KHR_materials_ior"]
    load(writer.glb(), "looks.glb")
    writer.document["extensionsRequired"] = ["a\x1b[31m\nb"]
    with pytest.raises(InputError, match=r"requires the extension a\\x1b\[31m\\nb, which"):
        load(writer.glb(), "hostile.glb")
    for name in ("VENDOR_shape", "EXT_meshopt_compression", "KHR_meshopt_compression", "KHR_mesh_primitive_restart"):
        writer.document["extensionsRequired"] = [name]
        with pytest.raises(InputError, match=f"requires the extension {name}"):
            load(writer.glb(), "required.glb")


def test_meshopt_is_read_where_its_data_is_there_uncompressed_too(load: Load) -> None:
    writer = box_writer()
    name = "EXT_meshopt_compression"
    writer.document["extensionsUsed"] = [name]
    for view in writer.document["bufferViews"]:
        view["extensions"] = {name: {"buffer": 1, "byteLength": 4, "byteStride": 12, "mode": "ATTRIBUTES", "count": 8}}
    assert_truth(load(writer.glb(), "fallback.glb"), BOX_TRUTH)
    writer.document["buffers"] = [{"byteLength": len(writer.data), "extensions": {name: {"fallback": True}}}]
    with pytest.raises(InputError, match=f"no data in the file but by {name}"):
        load(writer.glb(), "compressed.glb")
