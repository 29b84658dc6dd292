"""Distances and signs of model.sdf.voxelize against a float64 brute force, on real meshes.

    python -m benchmarks.voxelize_accuracy FOLDER [--meshes 60] [--samples 600] [--resolution 128] [--output FILE]

Meshes are drawn by the hash of their name, half of them closed and half open. Half of each mesh's samples are voxels
that were stored, half are voxels around random points of the surface, which tells of missed ones. The winding number is
that of the mesh made consistent first (orient_consistently), as voxelize does; how many meshes that changes is counted.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from model.errors import InputError
from model.meshes import find_meshes, load_mesh
from model.meshes.files import Mesh
from model.sdf import voxelize
from model.sdf.sign import orient_consistently
from tests.model.sdf import brute_force_sdf as brute_force

BAND = 2.0
CLEAR = 0.01  # of |w| - 0.5, and in voxels of the distance: nearer to zero the sign is a matter of rounding
ON_SURFACE = 1e-3


def check(mesh: Mesh, *, resolution: int, num_samples: int) -> dict[str, Any]:
    shape = voxelize(mesh.vertices, mesh.faces, resolution=resolution, truncation_voxels=BAND)
    rng = np.random.default_rng(0)
    faces = orient_consistently(mesh.faces)
    triangles = brute_force.normalised(mesh.vertices, faces)

    stored = shape.coords[rng.choice(len(shape.coords), num_samples // 2)]
    area = np.linalg.norm(np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]), axis=1)
    chosen = triangles[rng.choice(len(area), num_samples - len(stored), p=area / area.sum())]
    on_surface = np.einsum("nij,ni->nj", chosen, rng.dirichlet((1, 1, 1), len(chosen)))
    around = ((on_surface + 1) * resolution / 2 + rng.uniform(-BAND, BAND, on_surface.shape)).astype(int)
    coords = np.concatenate([stored, around]).clip(0, resolution - 1)

    values = np.full((resolution,) * 3, np.nan, np.float32)
    values[tuple(shape.coords.T)] = shape.sdf * BAND
    got = values[tuple(coords.T)]
    points = (coords + 0.5) * 2 / resolution - 1
    distance = brute_force.distances(points, triangles) * resolution / 2
    winding = brute_force.winding_numbers(points, triangles)
    there = ~np.isnan(got)
    clear = there & (np.abs(np.abs(winding) - 0.5) > CLEAR) & (distance > ON_SURFACE)
    return {
        "faces": len(mesh.faces),
        "closed": mesh.watertight,
        "wound_inconsistently": not np.array_equal(faces, mesh.faces),
        "samples": len(coords),
        "missed": int((~there & (distance < BAND - 1e-3)).sum()),
        "stored_beyond_the_band": int((there & (distance > BAND + 1e-3)).sum()),
        "max_distance_error_voxels": float(np.abs(np.abs(got) - distance)[there].max()),
        "clear_samples": int(clear.sum()),
        "sign_errors": int(((got < 0) != (np.abs(winding) > 0.5))[clear].sum()),
        "bad_flip_ratio": shape.bad_flip_ratio,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--meshes", type=int, default=60)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    files = find_meshes(options.folder)
    rows: dict[str, dict[str, Any]] = {}
    wanted = {True: (options.meshes + 1) // 2, False: options.meshes // 2}
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if not any(wanted.values()):
            break
        try:
            mesh = load_mesh(files[name])
            if wanted[mesh.watertight]:
                rows[name] = check(mesh, resolution=options.resolution, num_samples=options.samples)
                wanted[mesh.watertight] -= 1
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
    together = {
        "meshes": len(rows),
        "closed": sum(row["closed"] for row in rows.values()),
        "wound_inconsistently": sum(row["wound_inconsistently"] for row in rows.values()),
        **{
            name: sum(row[name] for row in rows.values())
            for name in ("samples", "missed", "stored_beyond_the_band", "clear_samples", "sign_errors")
        },
        "max_distance_error_voxels": max(row["max_distance_error_voxels"] for row in rows.values()),
    }
    document = json.dumps({"together": together, "meshes": rows}, indent=1)
    if options.output:
        options.output.write_text(document + "\n")
    print(json.dumps(together, indent=1))


if __name__ == "__main__":
    main()
