"""How fast and how right is mesh to signed distance near the surface, by itself and beside other libraries?

    .venv/bin/python -m benchmarks.voxelize compare FOLDER MESH [MESH ...] [--peers PYTHON] [--resolutions 128 256 512]
    .venv/bin/python -m benchmarks.voxelize accuracy FOLDER [--meshes 60] [--samples 600] [--resolution 128]
    .venv/bin/python -m benchmarks.voxelize device [--device cuda]
    each with --json FILE

compare: seconds, peak memory and sign errors on one core, the same meshes, one run. PYTHON is an interpreter with
libigl 2.6.3, open3d 0.20.0, trimesh 5.2.0 with rtree 1.4.1, mesh2sdf 1.1.0. None of them makes a sparse grid, so each
is asked for the voxels that ours stored: the time to find these is not in theirs, though it is in ours. libigl answers
with the winding number, Open3D with the parity of one ray, trimesh with its own nearest face and mesh2sdf with the
whole dense grid. Signs are compared with a float64 winding number at 1000 of these voxels. What takes more than --limit
seconds is ended and has no figures, nor has it at higher resolutions.

accuracy: distances and signs against a float64 brute force. Meshes are drawn by the hash of their name, half of them
closed and half open. Half of each mesh's samples are voxels that were stored, half are voxels around random points of
the surface, which tells of missed ones. The winding number is that of the mesh made consistent first
(orient_consistently), as voxelize does; how many meshes that changes is counted.

device: this project alone, 70 000 triangles of a ring at R = 512, and how long each part takes. Needs numpy, scipy,
jaxtyping and warp alone.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "IGL_NUM_THREADS"):
    os.environ[threads] = "1"  # before numpy reads it

import numpy as np  # noqa: E402  # reads them

from benchmarks import add_json, command, command_line, processor, write_json  # noqa: E402

if TYPE_CHECKING:
    from model.meshes import Mesh

BAND = 2.0
CLEAR = 0.01  # of |w| - 0.5, and in voxels of the distance: nearer to zero the sign is a matter of rounding
ON_SURFACE = 1e-3
METHODS = ("ours", "libigl", "open3d", "trimesh", "mesh2sdf")


def asked(method: str, vertices: np.ndarray, faces: np.ndarray, coords: np.ndarray, size: int) -> np.ndarray:
    """Signed distance in the cube at the voxels, vertices in the cube as well."""
    points = (coords + 0.5) * 2 / size - 1
    if method == "libigl":
        import igl

        return np.asarray(igl.signed_distance(points, vertices, faces, igl.SIGNED_DISTANCE_TYPE_FAST_WINDING_NUMBER)[0])
    if method == "open3d":
        import open3d

        scene = open3d.t.geometry.RaycastingScene(nthreads=1)
        scene.add_triangles(vertices.astype(np.float32), faces.astype(np.uint32))
        return scene.compute_signed_distance(points.astype(np.float32), nthreads=1).numpy()
    if method == "trimesh":
        import trimesh

        mesh = trimesh.Trimesh(vertices, faces, process=False)
        return -trimesh.proximity.signed_distance(mesh, points)
    import mesh2sdf

    return mesh2sdf.compute(vertices, faces, size)[tuple(coords.T)]


def measure(job: dict[str, Any]) -> None:
    """One method on one mesh, in a process of its own; figures to stdout as JSON."""
    data = np.load(job["data"])
    vertices, faces, size = data["vertices"], data["faces"], int(job["resolution"])
    call: Callable[[], Any]
    if job["method"] == "ours":
        from model.sdf import voxelize

        def call() -> Any:
            return voxelize(vertices, faces, resolution=size, truncation_voxels=BAND)

        voxelize(vertices, faces, resolution=16, truncation_voxels=BAND)  # loads the kernels
    else:

        def call() -> Any:
            return asked(job["method"], vertices, faces, data["coords"], size)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: list[float] = []
    while len(seconds) < 3 and sum(seconds) < 20:
        started = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if job["method"] == "ours":
        np.savez(job["out"], coords=result.coords, sdf=result.sdf)
        signed = result.sdf
    else:
        signed = result
    print(
        json.dumps(
            {
                "seconds": statistics.median(seconds),
                "runs": len(seconds),
                "peak_mb": peak / 1024,
                "peak_above_start_mb": (peak - before) / 1024,
                "negative": (np.asarray(signed)[data["sampled"]] < 0).tolist() if "sampled" in data else None,
            }
        )
    )


def run(python: str, job: dict[str, Any], limit: float) -> dict[str, Any]:
    command = ["taskset", "-c", "0", python, "-m", "benchmarks.voxelize", "job", json.dumps(job)]
    try:
        process = subprocess.run(command, capture_output=True, timeout=limit, text=True, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {limit:g} s"}
    if process.returncode:
        return {"error": (process.stderr.strip().splitlines() or [f"exit {process.returncode}"])[-1][:200]}
    return dict(json.loads(process.stdout.splitlines()[-1]))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    from model.meshes import load_mesh
    from model.sdf import normalised_surface
    from tests.model.sdf import brute_force_sdf as brute_force

    rows = []
    for name in options.meshes:
        mesh = load_mesh(options.folder / name)
        surface = normalised_surface(mesh.vertices, mesh.faces)
        vertices = surface.vertices.astype(np.float64)
        faces = surface.faces.astype(np.int64)
        gave_up: dict[str, Any] = {}  # a finer grid takes longer still
        for size in sorted(options.resolutions):
            with tempfile.TemporaryDirectory() as folder:
                data, out = Path(folder, "data.npz"), Path(folder, "out.npz")
                np.savez(data, vertices=vertices, faces=faces)
                row = {"mesh": name, "faces": len(faces), "closed": mesh.is_closed, "resolution": size}
                job = {"data": str(data), "out": str(out), "method": "ours", "resolution": size}
                row["ours"] = run(sys.executable, job, options.limit)
                if "error" in row["ours"]:
                    rows.append(row)
                    continue
                shape = np.load(out)
                sampled = np.random.default_rng(0).choice(len(shape["coords"]), 1000)
                points = (shape["coords"][sampled] + 0.5) * 2 / size - 1
                winding = np.abs(brute_force.winding_numbers(points, vertices[faces]))
                clear = (np.abs(winding - 0.5) > 0.01) & (np.abs(shape["sdf"][sampled]) > 1e-3)
                truth = winding > 0.5
                row["clear_samples"] = int(clear.sum())
                row["ours"]["negative"] = (shape["sdf"][sampled] < 0).tolist()
                np.savez(data, vertices=vertices, faces=faces, coords=shape["coords"], sampled=sampled)
                for method in METHODS[1:] if options.peers else ():
                    job = {"data": str(data), "method": method, "resolution": size}
                    row[method] = gave_up.get(method) or run(options.peers, job, options.limit)
                    if "error" in row[method]:
                        gave_up[method] = row[method]
                for method in METHODS:
                    negative = row.get(method, {}).pop("negative", None)
                    if negative is not None:
                        row[method]["sign_errors"] = int((np.array(negative) != truth)[clear].sum())
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    return {"band_voxels": BAND, "limit_seconds": options.limit, "rows": rows}


# --- accuracy


def check(mesh: "Mesh", *, resolution: int, num_samples: int) -> dict[str, Any]:
    from model.sdf import voxelize
    from model.sdf.edges import orient_consistently
    from tests.model.sdf import brute_force_sdf as brute_force

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
        "closed": mesh.is_closed,
        "wound_inconsistently": not np.array_equal(faces, mesh.faces),
        "samples": len(coords),
        "missed": int((~there & (distance < BAND - 1e-3)).sum()),
        "stored_beyond_the_band": int((there & (distance > BAND + 1e-3)).sum()),
        "max_distance_error_voxels": float(np.abs(np.abs(got) - distance)[there].max()),
        "clear_samples": int(clear.sum()),
        "sign_errors": int(((got < 0) != (np.abs(winding) > 0.5))[clear].sum()),
        "bad_flip_ratio": shape.bad_flip_ratio,
    }


def accuracy(options: argparse.Namespace) -> dict[str, Any]:
    from model.errors import InputError
    from model.meshes import find_meshes, load_mesh

    files = find_meshes(options.folder)
    rows: dict[str, dict[str, Any]] = {}
    wanted = {True: (options.meshes + 1) // 2, False: options.meshes // 2}
    for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        if not any(wanted.values()):
            break
        try:
            mesh = load_mesh(files[name])
            if wanted[mesh.is_closed]:
                rows[name] = check(mesh, resolution=options.resolution, num_samples=options.samples)
                wanted[mesh.is_closed] -= 1
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
    print(json.dumps(together, indent=1))
    return {"together": together, "meshes": rows}


# --- on a device, part by part


def torus(major: int, minor: int) -> tuple[np.ndarray, np.ndarray]:
    """2 * major * minor triangles of a ring whose shape a formula gives."""
    u, v = np.meshgrid(np.arange(major) * 2 * np.pi / major, np.arange(minor) * 2 * np.pi / minor, indexing="ij")
    ring = 0.7 + 0.25 * np.cos(v)
    vertices = np.stack([ring * np.cos(u), ring * np.sin(u), 0.25 * np.sin(v)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(major), np.arange(minor), indexing="ij")
    a, b = i * minor + j, (i + 1) % major * minor + j
    c, d = (i + 1) % major * minor + (j + 1) % minor, i * minor + (j + 1) % minor
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return vertices, faces


# Functions that model.sdf.grid calls; what is left of the whole is its own.
PARTS = (
    "check_mesh",
    "normalisation",
    "wind_consistently",
    "short_triangles",
    "band_bricks",
    "cap_holes",
    "brick_insides",
    "bad_flip_ratio",
    "band_rows",
)


def parts(call: Callable[[], Any], synchronize: Callable[[], None], repeats: int) -> dict[str, float]:
    """Median milliseconds in each part of a voxelization; what was launched is waited for, so they sum up to more."""
    from model.sdf import grid

    spent: dict[str, list[float]] = {name: [] for name in PARTS}

    def timed(name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        def run_part(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            started = time.perf_counter()
            result = part(*args, **kwargs)
            synchronize()
            spent[name].append((time.perf_counter() - started) * 1000)
            return result

        return run_part

    originals = {name: getattr(grid, name) for name in PARTS}
    for name, part in originals.items():
        setattr(grid, name, timed(name, part))
    try:
        for _ in range(repeats):
            call()
    finally:
        for name, part in originals.items():
            setattr(grid, name, part)
    return {name: statistics.median(times) for name, times in spent.items() if times}


def on_device(options: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds, and distance and sign against the torus's formula, which the facets undercut a little."""
    from model.sdf import voxelize
    from model.warp import wp

    size = 512
    device = options.device
    report: dict[str, Any] = {"warp": wp.__version__, "resolution": size, "band_voxels": BAND}
    vertices, whole = torus(200, 175)
    around = np.arctan2(*vertices[whole].mean(1)[:, 1::-1].T)
    scattered = np.random.default_rng(0).random(len(whole)) < 0.01
    meshes = {
        "closed": whole,
        "with a large hole": whole[around > -2.9],
        "with 1 % of the faces gone": whole[~scattered],
    }
    for name, faces in meshes.items():

        def call(faces: np.ndarray = faces) -> Any:
            return voxelize(vertices, faces, resolution=size, truncation_voxels=BAND, device=device)

        started = time.perf_counter()
        shape = call()  # compiles
        first = time.perf_counter() - started
        times: list[float] = []
        while len(times) < 3 or (len(times) < 20 and sum(times) < 10_000):
            started = time.perf_counter()
            shape = call()
            times.append((time.perf_counter() - started) * 1000)
        points = ((shape.coords + 0.5) * 2 / size - 1) * shape.scale + shape.center
        ring = np.hypot(points[:, 0], points[:, 1]) - 0.7
        expected = (np.hypot(ring, points[:, 2]) - 0.25) / (2 / size * shape.scale)
        got = shape.sdf * BAND
        # near a hole neither distance nor sign is the torus's
        error = np.abs(np.abs(got) - np.abs(expected))
        clear = np.abs(expected) > 0.2
        report[name] = {
            "faces": len(faces),
            "median_ms": statistics.median(times),
            "min_ms": min(times),
            "first_call_seconds": first,
            "parts_ms": parts(call, lambda: wp.synchronize_device(device), min(len(times), 7)),
            "voxels": len(got),
            "bad_flip_ratio": shape.bad_flip_ratio,
            "median_distance_difference_voxels": float(np.median(error)),
            "p999_distance_difference_voxels": float(np.quantile(error, 0.999)),
            "sign_differences": int(((got < 0) != (expected < 0))[clear].sum()),
        }
    return report


def main() -> None:
    parser = command_line(__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("compare", help="beside other libraries, on one core")
    one.add_argument("folder", type=Path)
    one.add_argument("meshes", nargs="+")
    one.add_argument("--peers", metavar="PYTHON")
    one.add_argument("--resolutions", type=int, nargs="+", default=[128, 256, 512])
    one.add_argument("--limit", type=float, default=120, metavar="SECONDS")
    one.set_defaults(measure=compare, device="cpu", cores=1)
    add_json(one, "voxelize.json")
    one = commands.add_parser("accuracy", help="against a float64 brute force")
    one.add_argument("folder", type=Path)
    one.add_argument("--meshes", type=int, default=60)
    one.add_argument("--samples", type=int, default=600)
    one.add_argument("--resolution", type=int, default=128)
    one.set_defaults(measure=accuracy, device="cpu", cores=None)
    add_json(one, "voxelize_accuracy.json")
    one = commands.add_parser("device", help="this project alone, part by part")
    one.add_argument("--device", default="cuda")
    one.set_defaults(measure=on_device, cores=1)
    add_json(one, "voxelize_gpu.json")
    one = commands.add_parser("job")  # one process of compare
    one.add_argument("job", type=json.loads)
    options = parser.parse_args()
    if "job" in options:
        measure(options.job)
        return
    write_json(options.json, {"command": command(), "device": name_of(options)} | options.measure(options))


def name_of(options: argparse.Namespace) -> str:
    if not options.device.startswith("cuda"):
        return processor(options.cores)
    from model.warp import wp

    return str(wp.get_device(options.device).name)


if __name__ == "__main__":
    main()
