"""What the worker processes of encode and evaluate do. It imports no torch, which they would load for nothing."""

from pathlib import Path
from typing import Any, NamedTuple

from ..errors import reason_of
from ..jobs import GB
from ..meshes import load_mesh, memory_to_load
from ..sdf import SparseSDF, Surface, normalised_surface, voxelize


class Voxelized(NamedTuple):
    grid: SparseSDF
    notes: tuple[str, ...]  # what was repaired or left out while the file was read
    surface: Surface | None  # in the [-1, 1] cube, where it was asked for


class VoxelizeJob(NamedTuple):
    name: str
    path: Path
    options: tuple[tuple[str, Any], ...]  # of model.sdf.voxelize
    max_memory_gb: float
    with_surface: bool


def voxelize_file(job: VoxelizeJob) -> Voxelized | str:
    """The grid of a mesh file, or the reason why there is none. Raises again what is the machine's fault."""
    try:
        needed = memory_to_load(job.path) / GB
        if needed > job.max_memory_gb:
            return f"reading it takes about {needed:.1f} GB of memory; simplify the mesh or raise --max-memory-gb"
        mesh = load_mesh(job.path)
        surface = normalised_surface(mesh.vertices, mesh.faces) if job.with_surface else None
        return Voxelized(voxelize(mesh.vertices, mesh.faces, **dict(job.options)), mesh.notes, surface)
    except Exception as error:  # noqa: BLE001 - one mesh must not end the run, and its line says what happened
        return reason_of(error, given=job.path, more_memory="simplify the mesh or raise --max-memory-gb")
