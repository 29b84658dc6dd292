"""A writer of glTF for tests: documents as dictionaries, arrays appended to one buffer."""

import base64
import json
import struct
from typing import Any

import numpy as np

from tests.model.meshes.truths import BOX, TRIANGLES

TYPES = {"b": 5120, "B": 5121, "h": 5122, "H": 5123, "I": 5125, "f": 5126}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Writer:
    """A document under construction; `document` may be changed at will before it is written."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.document: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "scene": 0,
            "scenes": [{"nodes": [0]}],
            "nodes": [{"mesh": 0}],
            "meshes": [],
            "accessors": [],
            "bufferViews": [],
        }

    def view(self, data: bytes, **keys: Any) -> int:
        self.data += b"\0" * (-len(self.data) % 4)
        self.document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **keys}
        )
        self.data += data
        return len(self.document["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, *, stride: int = 0, **keys: Any) -> int:
        values = np.ascontiguousarray(values)
        width = 1 if values.ndim == 1 else values.shape[1]
        data, size = values.tobytes(), width * values.itemsize
        if stride:
            data = b"".join(data[i : i + size].ljust(stride, b"\xab") for i in range(0, len(data), size))
            view = self.view(data, byteStride=stride)
        else:
            view = self.view(data)
        accessor = {"bufferView": view, "componentType": TYPES[values.dtype.char], "count": len(values)}
        self.document["accessors"].append({**accessor, "type": KINDS[width], **keys})
        return len(self.document["accessors"]) - 1

    def positions(self, values: np.ndarray = BOX) -> int:
        return self.accessor(values.astype("f"), min=values.min(0).tolist(), max=values.max(0).tolist())

    def indices(self, values: Any = TRIANGLES, dtype: str = "H") -> int:
        return self.accessor(np.asarray(values).reshape(-1).astype(dtype))

    def mesh(self, *primitives: dict[str, Any], **keys: Any) -> int:
        self.document["meshes"].append({"primitives": list(primitives), **keys})
        return len(self.document["meshes"]) - 1

    def box(self, **keys: Any) -> dict[str, Any]:
        """A primitive of the box of 1 by 2 by 3."""
        return {"attributes": {"POSITION": self.positions()}, "indices": self.indices(), **keys}

    def glb(self) -> bytes:
        self.document.setdefault("buffers", [{"byteLength": len(self.data)}])
        text = json.dumps(self.document).encode()
        text += b" " * (-len(text) % 4)
        data = bytes(self.data) + b"\0" * (-len(self.data) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def gltf(self, uri: str | None = None) -> bytes:
        uri = uri or "data:application/octet-stream;base64," + base64.b64encode(self.data).decode()
        self.document["buffers"] = [{"byteLength": len(self.data), "uri": uri}]
        return json.dumps(self.document, indent=1).encode()


def box_writer(**node: Any) -> Writer:
    """One node with the box."""
    writer = Writer()
    writer.mesh(writer.box())
    writer.document["nodes"] = [{"mesh": 0, **node}]
    return writer
