"""One file to one shape in scratch, or to a verdict."""

from pathlib import Path

import pytest
import trimesh

from model.meshes import Mesh
from tasks.voxelization import jobs


def test_a_file_that_is_being_written_gets_no_verdict_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its hash and its reading it changes; the next run reads what it has become."""
    ball = trimesh.creation.icosphere(1).export(file_type="stl")
    path, scratch = tmp_path / "ball.stl", tmp_path / "scratch"
    path.write_bytes(ball)
    job = jobs.Job("ball", path, jobs.Recipe(24, 2.0, "solid", 0.0), "this version", scratch, 1.0)
    load = jobs.load_mesh

    def grows(path: Path) -> Mesh:
        path.write_bytes(trimesh.creation.icosphere(2).export(file_type="stl"))
        return load(path)

    monkeypatch.setattr(jobs, "load_mesh", grows)
    assert "changed while it was read" in jobs._voxelize_file(job).reason
    assert not list(scratch.rglob("*.*"))
    monkeypatch.setattr(jobs, "load_mesh", load)
    outcome = jobs._voxelize_file(job)
    assert (outcome.reason, outcome.facts["num_faces"]) == ("", 320)
