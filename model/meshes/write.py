"""From a mesh to the bytes of a file, in any frame: what is read back is the mesh to 1e-7 of its size."""

import numpy as np
import trimesh

from .mesh import Faces, Vertices


def ply_bytes(vertices: Vertices, faces: Faces) -> bytes:
    """Binary, the vertices as doubles."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property double {axis}" for axis in "xyz"]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    rows = np.empty(len(faces), [("num_corners", "u1"), ("corners", "<i4", 3)])
    rows["num_corners"], rows["corners"] = 3, faces
    return "\n".join(lines).encode() + vertices.astype("<f8").tobytes() + rows.tobytes()


def obj_bytes(vertices: Vertices, faces: Faces) -> bytes:
    """As many digits as tell each number from its neighbours."""
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in vertices.astype(np.float64).tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join([*lines, ""]).encode()


def glb_bytes(vertices: Vertices, faces: Faces) -> bytes:
    """The vertices, which glTF wants in float32, in a [-1, 1] cube of their own; a node's transform leads back."""
    low, high = vertices.min(0).astype(np.float64), vertices.max(0).astype(np.float64)
    center, scale = low / 2 + high / 2, (high / 2 - low / 2).max() or 1.0
    in_cube = trimesh.Trimesh((vertices - center) / scale, faces, process=False)
    to_world = np.diag([scale, scale, scale, 1.0])
    to_world[:3, 3] = center
    scene = trimesh.Scene()
    scene.add_geometry(in_cube, transform=to_world)
    content = scene.export(file_type="glb")
    assert isinstance(content, bytes)  # trimesh has formats that give a dict
    return content
