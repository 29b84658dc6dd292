"""The stage itself, on small real files, in folders of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trimesh
import yaml

from model.errors import InputError
from model.meshes import find_meshes, load_mesh
from model.sdf import voxelize
from tasks import voxelize as stage
from tasks.run import Settings, load_settings, paths, run_stage
from tasks.shards import open_shards
from tests.faults import full, left_over, read_only, small_disk
from tests.model.meshes.gltf_writer import box_writer
from tests.model.meshes.truths import BOX
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def settings_for(folder: str = "meshes", **changes: float) -> Settings:
    """The shipped parameters at resolution 24, with changes, also written to params.yaml."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["voxelize"] |= {"meshes": folder, "resolution": 24, "shapes_per_shard": 3, "max_rejected_share": 0.0}
    values["voxelize"] |= {"val_share": 0.3, "test_share": 0.3, **changes}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return load_settings()


def write_balls(folder: Path, num: int = 9) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    suffixes = ["stl", "obj", "ply", "glb", "off", "STL"]
    for i in range(num):
        ball = trimesh.creation.icosphere(1).apply_scale((1, 1 + 0.1 * i, 1))
        name = folder / ("deep" if i % 2 else ".") / f"ball_{i}.{suffixes[i % len(suffixes)]}"
        name.parent.mkdir(exist_ok=True)
        name.write_bytes(_exported(ball, name.suffix.lower()[1:]))


def _exported(mesh: trimesh.Trimesh, kind: str) -> bytes:
    content = mesh.export(file_type=kind)
    return content.encode() if isinstance(content, str) else content


def in_scratch() -> dict[str, int]:
    """Finished meshes and when they were written."""
    finished = (path for path in paths.VOXELIZE_SCRATCH.glob("*/*.*") if path.suffix != ".partial")
    return {path.name: path.stat().st_mtime_ns for path in finished}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine balls, and what the stage makes of them on all cores."""
    root = tmp_path_factory.mktemp("voxelized")
    with chdir(root):
        write_balls(Path("meshes"))
        stage.voxelize_meshes(settings_for())
    return root


@pytest.fixture
def voxelized(here: Path, made_once: Path, one_worker: None, forked_workers: None) -> None:
    """The same, here."""
    shutil.copytree(made_once, here, dirs_exist_ok=True)


@pytest.mark.usefixtures("voxelized")
def test_every_file_becomes_a_shape_and_a_rerun_the_same_bytes() -> None:
    shards = open_shards(paths.SDF)
    files = find_meshes(Path("meshes"))
    assert sorted(shards.index.index) == sorted(files)
    assert "deep/ball_1" in files
    assert sorted(shards.names("train") + shards.names("val") + shards.names("test")) == sorted(files)
    for name, path in files.items():
        mesh = load_mesh(path)
        expected = voxelize(mesh.vertices, mesh.faces, resolution=24, truncation_voxels=2.0)
        assert np.array_equal(shards.read(name).sdf, expected.sdf)
        assert shards.index.loc[name, "watertight"]
    for name in shards.names("test"):
        assert np.abs(shards.read_surface(name).vertices).max() == pytest.approx(0.95)
    figures = json.loads(Path("metrics/voxelize.json").read_text())
    assert (figures["num_meshes"], figures["num_rejected"], figures["num_watertight"]) == (9, 0, 9)
    assert figures["num_train"] + figures["num_val"] + figures["num_test"] == 9

    first = contents(paths.SDF)
    shutil.rmtree(paths.VOXELIZE_SCRATCH)
    stage.voxelize_meshes(settings_for())
    assert contents(paths.SDF) == first


@pytest.mark.usefixtures("voxelized")
def test_one_more_mesh_costs_one_mesh_and_moves_none() -> None:
    before = open_shards(paths.SDF).index.split
    done = in_scratch()
    trimesh.creation.box((1, 2, 3)).export("meshes/another.stl")
    stage.voxelize_meshes(settings_for())
    after = open_shards(paths.SDF).index.split
    assert set(after.index) - set(before.index) == {"another"}
    assert after[before.index].equals(before)
    now = in_scratch()
    assert done.items() <= now.items()
    assert len(now) == len(done) + 1


@pytest.mark.usefixtures("voxelized")
def test_scratch_of_other_parameters_is_cleared() -> None:
    before = in_scratch()
    stage.voxelize_meshes(settings_for(truncation_voxels=3.0))
    assert len(in_scratch()) == len(before)
    assert not in_scratch().keys() & before.keys()
    assert open_shards(paths.SDF).truncation_voxels == 3.0


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_unusable_files_are_listed_with_reasons(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_balls(here / "meshes")
    flat = b"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    ply = _exported(trimesh.creation.icosphere(1), "ply")
    bad = {
        "empty.obj": b"",
        "comment.obj": b"# nothing\n",
        "prose.obj": b"Dear reader,\nthis is no mesh.\n",
        "binary.glb": bytes(range(256)) * 4,
        "cut.ply": ply[:700],
        "cut.glb": _exported(trimesh.creation.icosphere(1), "glb")[:700],
        "lying.ply": ply.replace(b"element face 80", b"element face 2000000000"),
        "lying.stl": _exported(trimesh.creation.icosphere(1), "stl")[:-50],
        "points.ply": _exported(trimesh.PointCloud(np.eye(3)), "ply"),
        "nan.off": flat.replace(b"1 0 0", b"1 0 nan"),
        "infinite.off": flat.replace(b"1 0 0", b"1 0 inf"),
        "index.off": flat.replace(b"3 0 1 2", b"3 0 1 7"),
        "point.off": flat.replace(b"0 1 0", b"0 0 0").replace(b"1 0 0", b"0 0 0"),
        "line.off": flat.replace(b"0 1 0", b"2 0 0"),
        "flat.off": flat,
        "huge.off": flat.replace(b"1 0 0", b"1e308 0 0").replace(b"0 0 0", b"-1e308 0 0"),
    }
    for name, content in bad.items():
        Path("meshes", name).write_bytes(content)
    Path("meshes/gone.stl").symlink_to(here / "nowhere.stl")
    with Path("meshes/enormous.stl").open("wb") as file:
        file.truncate(10**12)  # sparse: it takes no room
    bad |= {"gone.stl": b"", "enormous.stl": b""}
    with pytest.raises(
        InputError, match=r"18 of 27 meshes.*share is 0\).*; the first: meshes/binary\.glb: .*; meshes/comm"
    ):
        stage.voxelize_meshes(settings_for())
    assert not paths.SDF.exists()

    stage.voxelize_meshes(settings_for(max_rejected_share=0.7))
    reasons = pd.read_parquet(paths.SDF / "rejects.parquet").set_index("file").reason
    assert sorted(reasons.index) == sorted(f"meshes/{name}" for name in bad)
    assert reasons.str.len().min() > 20
    assert "can't be opened" in reasons["meshes/gone.stl"]
    assert re.search("reading this file takes about 16000.*max_memory_gb", reasons["meshes/enormous.stl"])
    assert len(open_shards(paths.SDF).index) == 9
    assert json.loads(Path("metrics/voxelize.json").read_text())["num_rejected"] == 18
    printed = capsys.readouterr().out
    assert all(f"rejected meshes/{name}: " in printed for name in bad)


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_odd_names_directories_and_links(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_balls(here / "meshes")
    ball = _exported(trimesh.creation.icosphere(1), "stl")
    for name in ("with space.stl", "ünï çødé.stl", ".hidden.stl", "a\nnewline.stl", "%s{}.stl"):
        Path("meshes", name).write_bytes(ball)
    Path(os.fsdecode(b"meshes/no_\xff_text.stl")).write_bytes(ball)
    Path(os.fsdecode(b"meshes/no_\xfe_text")).mkdir()
    Path(os.fsdecode(b"meshes/no_\xfe_text/ball.stl")).write_bytes(ball)
    Path("meshes/folder.stl").mkdir()
    Path("meshes/folder.stl/ball.stl").write_bytes(ball)
    Path("meshes/again").symlink_to(here / "meshes", target_is_directory=True)  # a loop
    Path("elsewhere").mkdir()
    Path("elsewhere/linked.stl").write_bytes(ball)
    Path("meshes/link").symlink_to(here / "elsewhere", target_is_directory=True)
    os.mkfifo("meshes/pipe.stl")
    stage.voxelize_meshes(settings_for(max_rejected_share=0.2))
    rejects = pd.read_parquet(paths.SDF / "rejects.parquet").set_index("file").reason
    assert "no ordinary file" in rejects.pop("meshes/pipe.stl")
    assert set(rejects.index) == {"meshes/no_\\udcff_text.stl", "meshes/no_\\udcfe_text/ball.stl"}
    assert rejects.str.startswith("its name is not UTF-8").all()  # as DVC can't track them: see .dvcignore
    names = set(open_shards(paths.SDF).index.index)
    assert {"with space", "ünï çødé", ".hidden", "a\\nnewline", "%s{}"} <= names
    assert {"folder.stl/ball", "link/linked"} <= names
    assert len(names) == 9 + 7
    assert all(line.isprintable() for line in capsys.readouterr().out.split("\n"))


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_modes_and_provenance_are_in_the_index(here: Path) -> None:
    write_balls(here / "meshes")
    bowl = trimesh.creation.icosphere(3)
    bowl.update_faces(bowl.triangles_center[:, 2] < 0)
    bowl.export("meshes/bowl.stl")
    stage.voxelize_meshes(settings_for(max_bad_flip_ratio=0.02))
    index = open_shards(paths.SDF).index
    assert index.loc["bowl", "mode"] == "shell"
    assert not index.loc["bowl", "watertight"]
    assert index.loc["bowl", "bad_flip_ratio"] > 0.02
    assert (index["mode"].drop("bowl") == "solid").all()
    assert open_shards(paths.SDF).read("bowl").mode == "shell"
    assert {"sha256", "num_faces", "num_dropped_faces", "num_voxels"} <= set(index.columns)
    seconds = pd.read_parquet(paths.TIMINGS / "voxelize.parquet")
    assert list(seconds.name) == list(index.index)
    assert (seconds.seconds > 0).all()


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_what_is_too_thin_for_a_voxel_is_kept_or_said_to_be_lost(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_balls(Path("meshes"))
    fin = trimesh.creation.box((2, 0.01, 1)).apply_translation((1, 0, 0))
    trimesh.util.concatenate([trimesh.creation.box(), fin]).export("meshes/fin.stl")
    trimesh.creation.icosphere(3).apply_scale((1, 1, 0.02)).export("meshes/lens.stl")
    inner = trimesh.creation.icosphere(3).apply_scale(0.99)
    inner.invert()
    trimesh.util.concatenate([trimesh.creation.icosphere(3), inner]).export("meshes/hollow.stl")
    stage.voxelize_meshes(settings_for(max_rejected_share=0.2))
    index = pd.read_parquet(paths.SDF / "index.parquet").set_index("name")
    assert index.loc["fin", "mode"] == "mixed"
    assert index.loc["fin", "lost_area_share"] < 0.01
    assert index.loc["hollow", "mode"] == "shell"
    assert "lens" not in index.index
    said = capsys.readouterr().out
    assert (
        "rejected meshes/lens.stl: no voxel is inside it at resolution 24, and it is flat: 0.46 voxels along z" in said
    )
    assert "1 meshes are shells, 1 solids with shells for what is too thin for a voxel" in said
    assert "lose more than" not in said
    metrics = json.loads(Path("metrics/voxelize.json").read_text())
    assert (metrics["num_shells"], metrics["num_mixed"]) == (1, 1)

    stage.voxelize_meshes(settings_for(max_rejected_share=0.3, mode="solid"))
    index = pd.read_parquet(paths.SDF / "index.parquet").set_index("name")
    assert index.loc["fin", "mode"] == "solid"
    assert index.loc["fin", "lost_area_share"] == pytest.approx(3 / 10, rel=0.1)  # outside the cube, of both
    said = capsys.readouterr().out
    assert index.loc["hollow", "lost_area_share"] > 0.8
    assert "2 meshes lose more than 0.1% of their area, in parts too thin for a voxel, at most" in said
    assert "% of hollow (lost_area_share in" in said


def test_no_mesh_at_all_says_where_and_what_to_do(here: Path) -> None:
    with pytest.raises(InputError, match=r"no mesh in nowhere.*voxelize\.meshes"):
        stage.voxelize_meshes(settings_for("nowhere"))


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_an_empty_split_is_refused(here: Path) -> None:
    write_balls(here / "meshes", num=1)
    with pytest.raises(InputError, match="split"):
        stage.voxelize_meshes(settings_for())


def test_ctrl_c_ends_the_stage_and_keeps_what_was_finished(here: Path) -> None:
    write_balls(here / "meshes", num=40)
    settings_for(resolution=96)  # so that most of it is still to do, however late the signal comes
    command = [sys.executable, "-m", "tasks.voxelize"]
    process = subprocess.Popen(command, cwd=here, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    wait_until(lambda: list(paths.VOXELIZE_SCRATCH.glob("*/*.parquet")) or process.poll() is not None)
    finished = list(paths.VOXELIZE_SCRATCH.glob("*/*.parquet"))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    assert finished
    assert all(path.exists() for path in finished)
    assert not paths.SDF.exists()


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_the_split_that_the_user_brings_counts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_balls(here / "meshes")
    names = sorted(find_meshes(Path("meshes")))
    splits = {name: ("train", "val", "test")[i % 3] for i, name in enumerate(names)}
    pd.DataFrame(splits.items(), columns=["name", "split"]).to_csv("meshes/split.csv", index=False)
    stage.voxelize_meshes(settings_for())
    assert open_shards(paths.SDF).index.split.to_dict() == splits
    assert "splits are those that meshes says" in capsys.readouterr().out


def test_a_split_without_test_meshes_is_refused_before_any_is_voxelized(here: Path) -> None:
    write_balls(here / "meshes")
    names = sorted(find_meshes(Path("meshes")))
    splits = {name: ("train", "val")[i % 2] for i, name in enumerate(names)}
    pd.DataFrame(splits.items(), columns=["name", "split"]).to_csv("meshes/split.csv", index=False)
    with pytest.raises(InputError, match=r"^meshes/split\.csv has no mesh of the test split, of 9 in all; .*add some"):
        stage.voxelize_meshes(settings_for())
    assert not paths.VOXELIZE_SCRATCH.exists()


@pytest.mark.usefixtures("one_worker")
def test_a_full_disk_ends_the_stage_and_drops_no_mesh(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = here / "disk"
    disk.mkdir()
    with small_disk(disk), chdir(disk):
        write_balls(disk / "meshes")
        settings = settings_for()
        with full(disk), pytest.raises(SystemExit, match=r"^voxelize: (No space left on device|File too large): "):
            run_stage("voxelize", stage.voxelize_meshes)
        assert "rejected" not in capsys.readouterr().out
        assert not paths.SDF.exists()
        assert not left_over(disk)
        stage.voxelize_meshes(settings)
        assert len(open_shards(paths.SDF).index) == 9


def test_a_cache_that_cannot_be_written_to_drops_no_mesh(here: Path) -> None:
    """That of Warp's kernels, which every process of the stage needs."""
    write_balls(here / "meshes")
    settings_for()
    cache = here / "cache"
    cache.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WARP_CACHE_PATH": str(cache / "warp")}
    command = [sys.executable, "-m", "tasks.voxelize"]
    with read_only(cache):
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    said = ended.stderr.strip().splitlines()[-1]
    assert said.startswith("voxelize: ")
    assert str(cache / "warp") in said
    assert "rejected" not in ended.stdout


@pytest.mark.usefixtures("forked_workers")
def test_files_of_the_same_content_are_all_there_and_in_one_split(here: Path) -> None:
    """Many workers then want the same scratch file at the same time."""
    write_balls(here / "meshes")
    source = next((here / "meshes").glob("*.*"))
    for number in range(16):
        shutil.copy(source, here / "meshes" / f"copy_{number}{source.suffix}")
    stage.voxelize_meshes(settings_for())
    index = open_shards(paths.SDF).index
    copies = index[index.index.str.startswith("copy_")]
    assert len(copies) == 16
    assert copies.split.nunique() == 1


@pytest.mark.usefixtures("one_worker", "forked_workers")
def test_what_is_noted_of_files_is_in_the_index_and_said_at_the_end(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also: names that differ by their suffix alone are shapes of their own, and a glTF's buffer is a part of it."""
    write_balls(here / "meshes")
    ball = trimesh.creation.icosphere(1)
    for name in ("chair.stl", "chair.obj", "chair.obj.ply"):
        Path("meshes", name).write_bytes(_exported(ball, Path(name).suffix[1:]))
    with Path("meshes/chair.obj").open("a") as file:
        file.write("\nl 1 2\nl 2 3\np 1\n")
    Path("meshes/renamed.stl").write_bytes(_exported(ball, "ply"))
    Path("meshes/._chair.stl").write_bytes(b"\0\5\x16\7" + bytes(100))
    writer = box_writer()
    Path("meshes/box.gltf").write_bytes(writer.gltf("box.bin"))
    Path("meshes/box.bin").write_bytes(writer.data)
    stage.voxelize_meshes(settings_for())
    index = open_shards(paths.SDF).index
    assert {"chair.stl", "chair.obj", "chair.obj.ply"} <= set(index.index)
    assert index.loc["chair.obj", "notes"] == "lines ignored: 2; points ignored: 1"
    assert index.loc["renamed", "notes"] == "named .stl but holds PLY: 1"
    assert (index.notes.drop(["chair.obj", "renamed"]) == "").all()
    printed = capsys.readouterr().out
    assert "lines ignored: 1 meshes, such as chair.obj (column notes of data/sdf/index.parquet)" in printed
    assert "named .stl but holds PLY: 1 meshes, such as renamed" in printed

    before, shape = index.loc["box"], open_shards(paths.SDF).read("box")
    writer.data[: 8 * 12] = (BOX * [1, 1, 2]).astype("f").tobytes()
    Path("meshes/box.bin").write_bytes(writer.data)
    stage.voxelize_meshes(settings_for())
    assert open_shards(paths.SDF).index.loc["box", "sha256"] != before.sha256
    assert len(open_shards(paths.SDF).read("box").coords) != len(shape.coords)
