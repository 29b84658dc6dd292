"""How long does it take to read a mesh of a million triangles, beside other libraries?

    PYTHONPATH=peers .venv/bin/python -m benchmarks.read_meshes [--peers] [--faces 1000000] [--rounds 5] [--json FILE]

with peers made by `pip install --target peers --no-deps tinyobjloader==2.0.0rc13 meshio==5.3.5 assimp-py==1.1.0
numpy-stl==4.1.1 plyfile==1.1.5 python-utils rich`; trimesh is among this project's own dependencies.

The mesh is a closed wavy torus, written as binary STL and PLY, GLB, and OBJ plain and with normals. Ours is load_mesh
whole: what was read held against what the file declares, vertices at one place merged, faces cleaned. Peers are asked
for arrays of vertices and triangles alone. Libraries take turns, each in one process with the garbage collector off
and the file in the page cache; seconds are medians, by the clock and of the CPU, where others use the same cores.
"""

import gc
import json
import struct
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import trimesh

from benchmarks import command, command_line, processor, write_json
from model.meshes import load_mesh

Reader = Callable[[Path], Any]


def wavy_torus(num_faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices as float32 and faces as int32, in the order of a grid of quads cut in two."""
    side = round((num_faces / 2) ** 0.5)
    u, v = (2 * np.pi * i / side for i in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    radius = 1 + 0.3 * np.cos(v) * (1 + 0.1 * np.sin(23 * u))
    vertices = np.stack([radius * np.cos(u), radius * np.sin(u), 0.3 * np.sin(v) + 0.02 * np.sin(17 * v)], -1)
    number = np.arange(side * side).reshape(side, side)
    a, b = number, np.roll(number, -1, 0)
    c, d = np.roll(b, -1, 1), np.roll(a, -1, 1)
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], 2)
    return vertices.reshape(-1, 3).astype(np.float32), faces.reshape(-1, 3).astype(np.int32)


def write_files(folder: Path, vertices: np.ndarray, faces: np.ndarray) -> dict[str, Path]:
    """The mesh in every format, by its row of the table."""
    paths = {name: folder / file for name, file in FILES.items()}
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    for name in ("STL", "PLY"):
        mesh.export(paths[name])
    paths["GLB"].write_bytes(glb(vertices, faces))
    points = "".join(f"v {x:.7g} {y:.7g} {z:.7g}\n" for x, y, z in vertices.tolist())
    normals = "".join(f"vn {x:.4f} {y:.4f} {z:.4f}\n" for x, y, z in mesh.vertex_normals.tolist())
    paths["OBJ"].write_text(points + "".join(f"f {a} {b} {c}\n" for a, b, c in (faces + 1).tolist()))
    corners = "".join(f"f {a}//{a} {b}//{b} {c}//{c}\n" for a, b, c in (faces + 1).tolist())
    paths["OBJ with normals"].write_text(points + normals + corners)
    return paths


FILES = {"STL": "a.stl", "PLY": "a.ply", "GLB": "a.glb", "OBJ": "a.obj", "OBJ with normals": "b.obj"}


def glb(vertices: np.ndarray, faces: np.ndarray) -> bytes:
    data = vertices.tobytes() + faces.astype("<u4").tobytes()
    low, high = vertices.min(0).tolist(), vertices.max(0).tolist()
    points = {"bufferView": 0, "componentType": 5126, "count": len(vertices), "type": "VEC3", "min": low, "max": high}
    indices = {"bufferView": 1, "componentType": 5125, "count": faces.size, "type": "SCALAR"}
    document = {
        "asset": {"version": "2.0"},
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [points, indices],
        "bufferViews": [
            {"buffer": 0, "byteLength": vertices.nbytes},
            {"buffer": 0, "byteOffset": vertices.nbytes, "byteLength": len(data) - vertices.nbytes},
        ],
        "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(data), b"BIN\0") + data
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def with_trimesh(path: Path) -> Any:
    mesh = trimesh.load_mesh(path, process=False)
    return mesh.vertices, mesh.faces


def peers() -> dict[str, dict[str, Reader]]:
    """For each format the other libraries, as their documentation says."""
    import assimp_py
    import meshio
    import plyfile
    import stl
    import tinyobjloader

    def with_meshio(path: Path) -> Any:
        mesh = meshio.read(path)
        return mesh.points, mesh.cells[0].data

    def with_assimp(path: Path) -> Any:
        scene = assimp_py.import_file(str(path), assimp_py.Process_Triangulate)
        return [(np.asarray(mesh.vertices), np.asarray(mesh.indices)) for mesh in scene.meshes]

    def with_tinyobjloader(path: Path) -> Any:
        reader = tinyobjloader.ObjReader()
        assert reader.ParseFromFile(str(path))
        shapes = reader.GetShapes()
        vertices = reader.GetAttrib().numpy_vertices()
        return vertices, [shape.mesh.numpy_indices() for shape in shapes]

    def with_plyfile(path: Path) -> Any:
        data = plyfile.PlyData.read(path, known_list_len={"face": {"vertex_indices": 3}})
        return data["vertex"].data, data["face"]["vertex_indices"]

    everywhere: dict[str, Reader] = {"trimesh": with_trimesh, "meshio": with_meshio, "assimp-py": with_assimp}
    without_meshio = {name: reader for name, reader in everywhere.items() if name != "meshio"}
    return {
        "STL": everywhere | {"numpy-stl": lambda path: stl.mesh.Mesh.from_file(path, calculate_normals=False).vectors},
        "PLY": everywhere | {"plyfile": with_plyfile},
        "GLB": without_meshio,
        "OBJ": everywhere | {"tinyobjloader": with_tinyobjloader},
        "OBJ with normals": everywhere | {"tinyobjloader": with_tinyobjloader},
    }


class Seconds(NamedTuple):
    wall: float
    cpu: float  # of all threads


def seconds(reader: Reader, path: Path) -> Seconds:
    started = time.perf_counter(), time.process_time()
    result = reader(path)
    elapsed = Seconds(time.perf_counter() - started[0], time.process_time() - started[1])
    del result
    return elapsed


def main() -> None:
    parser = command_line(__doc__, "read_meshes.json")
    parser.add_argument("--peers", action="store_true", help="measure the other libraries too, from PYTHONPATH")
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()

    others = peers() if options.peers else {}
    vertices, faces = wavy_torus(options.faces)
    rows: dict[str, Any] = {}
    gc.disable()
    with TemporaryDirectory() as folder:
        for name, path in write_files(Path(folder), vertices, faces).items():
            mesh = load_mesh(path)
            assert mesh.is_closed
            assert (len(mesh.vertices), len(mesh.faces), mesh.notes) == (len(vertices), len(faces), ())
            readers: dict[str, Reader] = {"ours": load_mesh, **others.get(name, {})}
            measured = {reader: list[Seconds]() for reader in readers}
            for _ in range(options.rounds):
                for reader, read in readers.items():
                    measured[reader].append(seconds(read, path))
                    gc.collect()
            rows[name] = {"megabytes": path.stat().st_size / 1e6}
            for clock in Seconds._fields:
                of_clock = {reader: [getattr(time_, clock) for time_ in times] for reader, times in measured.items()}
                rows[name][f"{clock}_seconds"] = {reader: median(times) for reader, times in of_clock.items()}
            print(name, rows[name], flush=True)
    names = ("trimesh", *(("meshio", "assimp-py", "numpy-stl", "plyfile", "tinyobjloader") if others else ()))
    versions = {name: version(name) for name in names}
    figures = {"command": command(), "device": processor(), "versions": versions, "num_faces": len(faces)}
    write_json(options.json, figures | {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
