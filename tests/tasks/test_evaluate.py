import json
import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
import yaml
from PIL import Image

from flows.run_page import FIGURES, PICTURES
from model.checkpoint import save_vae
from model.errors import InputError
from model.evaluation import Reconstructor
from model.metrics.truth import CUBE_DIAGONAL
from model.plots import usage_table
from model.quantizer import ResidualQuantizer
from model.sdf import Surface, voxelize
from model.tokenizer import ShapeTokenizer
from model.vae import SparseSDFVAE, VAEConfig
from model.vqvae import VQVAE
from tasks.data import save_codebooks
from tasks.evaluate import evaluate, load_networks
from tasks.run import Settings, paths, run_stage
from tasks.run.settings import Evaluate, Upstream
from tasks.shards import INDEX, SURFACES, open_shards, shape_row, write_index, write_shards, write_surfaces
from tests.dvc_project import ROOT
from tests.faults import full, left_over, small_disk
from tests.processes import in_two_processes
from tests.shapes import one_thread

ROWS = ("reference", "floor", "vae", "stage1", "stage2")
RESOLUTION = 32
CODEBOOK_SIZE = 16
DIM = 4


def shapes() -> dict[str, trimesh.Trimesh]:
    return {
        "ball": trimesh.creation.icosphere(subdivisions=3, radius=0.95),
        "kit/box": trimesh.creation.box((1.9, 1.2, 0.8)),
        "kit/ring": trimesh.creation.torus(0.7, 0.25),
    }


def write_shapes() -> None:
    paths.SDF.mkdir(parents=True)
    grids = {
        name: voxelize(mesh.vertices, mesh.faces, resolution=RESOLUTION, truncation_voxels=2.0)
        for name, mesh in shapes().items()
    }
    places = write_shards(paths.SDF, [shape_row(name, grid) for name, grid in grids.items()], shapes_per_shard=2)
    index = pd.DataFrame(
        [
            {"name": name, "split": "test", "num_voxels": len(grid.coords), **place._asdict()}
            for (name, grid), place in zip(grids.items(), places, strict=True)
        ]
    )
    write_index(paths.SDF / INDEX, index, resolution=RESOLUTION, truncation_voxels=2.0)
    surfaces = []
    for name, mesh in shapes().items():
        vertices = (mesh.vertices - grids[name].center) / grids[name].scale
        surfaces.append((name, Surface(vertices.astype(np.float32), mesh.faces.astype(np.int32))))
    write_surfaces(paths.SDF / SURFACES, surfaces)


def write_networks() -> None:
    torch.manual_seed(0)
    vae = SparseSDFVAE(VAEConfig(model_channels=64, num_blocks=1, latent_channels=DIM))
    torch.nn.init.normal_(vae.encoder.out_layer.weight, std=0.1)
    save_vae(vae, paths.VAE)
    quantizer = ResidualQuantizer([CODEBOOK_SIZE], DIM)
    torch.nn.init.normal_(quantizer.codebooks[0])
    paths.CODEBOOK.mkdir(parents=True)
    save_codebooks(quantizer.codebooks, paths.CODEBOOK)
    for parameter in vae.decoder.out_layer.parameters():  # stage 2 decodes to 0 everywhere: no surface
        torch.nn.init.zeros_(parameter)
    ShapeTokenizer(
        VQVAE(vae, quantizer), resolution=RESOLUTION, truncation_voxels=2.0, mode="solid", max_bad_flip_ratio=0.03
    ).save_pretrained(paths.STAGE2)


def write_histories() -> None:
    paths.METRICS.mkdir()
    history = pd.DataFrame({"step": [10, 20], "loss": [2.0, 1.0], "perplexity": [3.0, 5.0], "val_l1": [np.nan, 0.3]})
    for stage in ("stage1", "stage2"):
        history.to_csv(paths.METRICS / f"{stage}_history.tsv", sep="\t", index=False)


PARAMS = Evaluate(
    num_points=4000, fscore_thresholds=(0.01, 0.05), picture_shapes=2, report_shapes=3, report_views=2, seed=0
)
SETTINGS = Settings.model_construct(
    evaluate=PARAMS, upstream=Upstream(fetch_meshes=(), pretrain_vae=(), fetch_vae=(), twin=())
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch, one_thread():  # the last bits of sums depend on the number of threads
        patch.chdir(root)
        write_shapes()
        write_networks()
        write_histories()
        evaluate(SETTINGS)
        yield root


@pytest.fixture
def table(project: Path) -> pd.DataFrame:
    return pd.read_parquet(paths.EVALUATION / "per_shape.parquet")


@pytest.fixture
def metrics(project: Path) -> dict:
    return json.loads((paths.METRICS / "evaluate.json").read_text())


def test_every_shape_has_every_row(table: pd.DataFrame):
    assert sorted(zip(table["shape"], table["row"], strict=True)) == sorted((s, r) for s in shapes() for r in ROWS)


def test_floor_is_the_grids_own_error_above_that_of_sampling(metrics: dict):
    voxel_size = 2 / RESOLUTION
    assert metrics["reference"]["cd_l1"] < metrics["floor"]["cd_l1"] < metrics["reference"]["cd_l1"] + 0.1 * voxel_size
    assert metrics["floor"]["volume_iou"] > 0.97
    assert metrics["floor"]["spurious_area"] == 0
    assert metrics["floor"]["num_closed"] == 3


def test_failed_shapes_are_counted_and_not_dropped(metrics: dict, table: pd.DataFrame):
    assert (metrics["stage2"]["failures"], metrics["floor"]["failures"]) == (3, 0)
    assert metrics["stage2"]["cd_l1"] == pytest.approx(CUBE_DIAGONAL, rel=1e-5)
    assert metrics["stage2"]["fscore_0.05"] == 0
    assert metrics["stage2"]["num_shapes"] == 3
    assert metrics["stage2"]["sdf_l1"] > 0  # the field exists, only its surface does not
    assert table[table.row == "stage2"].failed.all()


def test_tokens_are_the_occupied_bricks_of_log2_k_bits_each(table: pd.DataFrame, metrics: dict):
    rows = table.set_index(["shape", "row"])
    for name, mesh in shapes().items():
        grid = voxelize(mesh.vertices, mesh.faces, resolution=RESOLUTION, truncation_voxels=2.0)
        assert rows.loc[(name, "stage1"), "num_tokens"] == len(grid.brick_coords)
        assert rows.loc[(name, "stage2"), "bits"] == 4 * len(grid.brick_coords)
    assert rows.xs("vae", level="row").num_tokens.isna().all()
    total = int(rows.xs("stage1", level="row").num_tokens.sum())
    assert metrics["codebook"]["stage1"]["num_tokens"] == metrics["codebook"]["stage2"]["num_tokens"] == total


def test_times_are_in_a_table_apart(project: Path, table: pd.DataFrame, metrics: dict):
    costs = pd.read_parquet(paths.TIMINGS / "evaluate.parquet")
    assert (costs[costs.row == "vae"][["encode_ms", "decode_ms", "memory_mb"]] > 0).all(axis=None)
    assert not any("ms" in key.split("_") for row in ROWS for key in [*metrics[row], *table.columns])


def test_the_headline_has_the_same_figures_in_short(project: Path, metrics: dict):
    of_codes = {name: metrics["codebook"]["stage2"][name] for name in ("usage", "perplexity")}
    expected = of_codes | {
        "cd_l1": metrics["stage2"]["cd_l1"],
        "s_iou": metrics["stage2"]["surface_iou"],
        "v_iou": metrics["stage2"]["volume_iou"],
        "tokens": metrics["stage2"]["num_tokens"],
        "stage1_cd_l1": metrics["stage1"]["cd_l1"],
        "vae_cd_l1": metrics["vae"]["cd_l1"],
    }
    assert json.loads(paths.HEADLINE.read_text()) == pytest.approx(expected, rel=1e-3)


def test_pairs_are_in_the_metrics_file(metrics: dict, table: pd.DataFrame):
    rows = table.set_index(["row", "shape"])
    for row in ("stage1", "vae"):
        change = metrics["paired"][f"stage2 - {row}"]["cd_l1"]
        expected = (rows.loc["stage2"].cd_l1 - rows.loc[row].cd_l1).mean()
        assert change["mean"] == pytest.approx(expected, rel=1e-5)
        assert change["ci_low"] <= change["mean"] <= change["ci_high"]
        assert change["num_shapes"] == 3
    assert "stage2 - twin" not in metrics["paired"]  # none was trained


def test_every_closed_truth_has_an_iou_in_every_row(table: pd.DataFrame, metrics: dict):
    """Though stage 2 draws no surface here at all."""
    assert table[table.row != "reference"].volume_iou.notna().all()
    assert table.open_volume_iou.isna().all()
    assert [metrics[row]["num_closed"] for row in ROWS] == [0, 3, 3, 3, 3]
    assert metrics["stage2"]["surface_iou"] == 0


def test_a_twin_is_a_row_of_its_own_while_it_is_asked_for(project: Path):
    """The VAE itself in its place decodes to the same field."""
    with pytest.raises(InputError, match=r"artifacts/twin is missing; train it by \.venv.*:twin@run"):
        load_networks(twin=True)
    shutil.copytree(paths.VAE, paths.TWIN)
    try:
        assert "twin" not in load_networks(twin=False)  # it lies there from an earlier run
        reconstructor = Reconstructor(load_networks(twin=True), torch.device("cpu"))
    finally:
        shutil.rmtree(paths.TWIN)
    shards = open_shards(paths.SDF)
    rows = {result.row: result for result in reconstructor.rows(shards.read("ball"))}
    assert set(rows) == {"floor", "vae", "twin", "stage1", "stage2"}
    assert rows["twin"].field is not None
    np.testing.assert_array_equal(rows["twin"].field.sdf, rows["vae"].field.sdf)
    assert rows["twin"].num_tokens is None


def test_rerun_writes_the_same_bytes(project: Path):
    folders = (paths.PLOTS, paths.EVALUATION)
    kept = [
        paths.METRICS / "evaluate.json",
        paths.HEADLINE,
        *(file for folder in folders for file in sorted(folder.iterdir())),
    ]
    before = [path.read_bytes() for path in kept]
    evaluate(SETTINGS)
    assert [path.read_bytes() for path in kept] == before


def test_two_processes_evaluate_to_the_bit_what_one_does(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    kept = [path.relative_to(project) for path in sorted(project.rglob("*")) if path.is_file()]
    for folder in (paths.EVALUATION, paths.PLOTS):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / paths.HEADLINE).unlink()
    values = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"evaluate": PARAMS.model_dump(mode="json")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    in_two_processes(lambda: evaluate(SETTINGS), ["-m", "tasks.evaluate"])
    for path in kept:
        if path.is_relative_to(paths.TIMINGS):
            continue
        assert (tmp_path / path).read_bytes() == (project / path).read_bytes(), path
    costs = pd.read_parquet(tmp_path / paths.TIMINGS / "evaluate.parquet")
    assert list(costs["shape"].unique()) == sorted(shapes())
    assert not left_over(tmp_path)


def test_plots_are_small_pictures(project: Path):
    sizes = {path.name: path.stat().st_size for path in paths.PLOTS.iterdir()}
    assert set(sizes) == {"loss_curves.png", "shapes.png", "usage_histogram.png", "usage_histogram.tsv"}
    assert sum(sizes.values()) < 600_000
    sheet = np.asarray(Image.open(paths.PLOTS / "shapes.png").convert("RGB"))
    assert len(np.unique(sheet)) > 10


def test_a_run_page_shows_what_there_is(project: Path, metrics: dict):
    """What it does not find it leaves out silently."""
    assert {f"{name}.png" for name in PICTURES} < {path.name for path in paths.PLOTS.iterdir()}
    assert set(FIGURES) < metrics["stage2"].keys()


def test_usage_table_lists_every_code_by_frequency(project: Path):
    table = pd.read_csv(paths.PLOTS / "usage_histogram.tsv", sep="\t")
    assert table["rank"].tolist() == list(range(1, CODEBOOK_SIZE + 1))
    assert table.stage1.is_monotonic_decreasing
    assert usage_table({"a": np.array([0, 5, 2])}) == "rank\ta\n1\t5\n2\t2\n3\t0\n"


def test_aggregates_are_in_a_table_of_their_own(table: pd.DataFrame, metrics: dict):
    aggregates = pd.read_parquet(paths.EVALUATION / "aggregates.parquet").set_index(["row", "figure"])
    values = table[table.row == "vae"].cd_l1
    of_vae = aggregates.loc[("vae", "cd_l1")]
    assert (of_vae["mean"], of_vae["median"]) == pytest.approx((values.mean(), values.median()))
    assert of_vae["p95"] == pytest.approx(np.percentile(values, 95))
    assert of_vae["mean"] == pytest.approx(metrics["vae"]["cd_l1"], rel=1e-5)
    assert aggregates.loc[("floor", "volume_iou"), "num_shapes"] == 3
    assert ("reference", "volume_iou") not in aggregates.index
    assert not aggregates.index.get_level_values("figure").str.endswith("_ms").any()


def test_no_test_shapes_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_shapes()
    index = pd.read_parquet(paths.SDF / INDEX).assign(split="train")
    write_index(paths.SDF / INDEX, index, resolution=RESOLUTION, truncation_voxels=2.0)
    with pytest.raises(InputError, match=r"has no test shape.*raise voxelize\.test_share"):
        evaluate(SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 8192, 2**17])
def test_a_full_disk_ends_it_and_the_next_run_completes(project: Path, tmp_path: Path, room: int):
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk), chdir(disk):
        shutil.copytree(project, disk, dirs_exist_ok=True)
        shutil.copy(ROOT / "params.yaml", disk)
        shutil.rmtree(paths.EVALUATION)
        message = (
            r"^evaluate: (No space left on device|File too large): .*and no input is at fault: run the stage again$"
        )
        with full(disk, room=room), pytest.raises(SystemExit, match=message):
            run_stage("evaluate", lambda _: evaluate(SETTINGS))
        assert not left_over(disk)
        evaluate(SETTINGS)
        made, expected = (folder / paths.EVALUATION / "per_shape.parquet" for folder in (disk, project))
        assert made.read_bytes() == expected.read_bytes()
