"""How long do the stages voxelize, stage1 and evaluate take on many shapes?

    .venv/bin/python -m benchmarks.stages evaluate [--json FILE]                              (after make repro)
    .venv/bin/python -m benchmarks.stages stage1 [--json FILE]                                (after make repro)
    .venv/bin/python -m benchmarks.stages voxelize FOLDER [--resolution 128] [--json FILE]

Each is the stage itself with the parameters of params.yaml, in a temporary folder, on the cores that this process may
use. evaluate has 100 shapes of the pipeline's own, training shapes among them, and the networks of the last run: this
measures time, not quality. stage1 has 200 000 latent vectors of both splits, the validation shapes among them, with its
start and its decoded shapes. voxelize has all meshes of FOLDER; its rejects and bad flips are counted too.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks import ROOT, add_json, command, command_line, conditions, processor, seconds_of_stage, write_json
from model.device import pick_device
from model.tables import read_rows, write_rows
from tasks.data import latents_file, latents_files
from tasks.run import PARAMS_FILE, paths
from tasks.shards import INDEX, REJECTS, open_shards, write_index

NUM_SHAPES = 100
NUM_VECTORS = 200_000
ALMOST_ALL = {"val_share": 0.02, "test_share": 0.95}  # of the meshes in test: more than 100 of them
NEEDED = [paths.MESHES, paths.VAE, paths.CODEBOOK, paths.TOKENIZER, paths.CODEBOOK_PLOTS]
HISTORIES = [paths.METRICS / f"{stage}_history.tsv" for stage in ("stage1", "stage2")]
SHARES = (0.5, 0.75, 0.9, 0.99, 1.0)


def write_params(folder: Path, voxelize: dict[str, Any]) -> dict[str, Any]:
    """The checkout's parameters, with these of the stage voxelize."""
    params: dict[str, Any] = yaml.safe_load((ROOT / PARAMS_FILE).read_text())
    params["voxelize"] |= voxelize
    (folder / PARAMS_FILE).write_text(yaml.safe_dump(params))
    return params


def link(folder: Path, paths: list[Path]) -> None:
    """What the last run left, as it is."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).symlink_to(ROOT / path)


def evaluate(_options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    link(folder, [*NEEDED, *HISTORIES])
    params = write_params(folder, ALMOST_ALL)
    seconds_of_stage("voxelize", folder)
    shards = open_shards(folder / paths.SDF)
    tested = shards.names("test")
    assert len(tested) >= NUM_SHAPES, f"only {len(tested)} shapes in the test split"
    index = shards.index.assign(split=shards.index.split.where(~shards.index.index.isin(tested[NUM_SHAPES:]), "train"))
    write_index(
        shards.directory / INDEX,
        index.reset_index(),
        resolution=shards.resolution,
        truncation_voxels=shards.truncation_voxels,
    )
    seconds = seconds_of_stage("evaluate", folder)
    return conditions(pick_device()) | {
        "num_shapes": NUM_SHAPES,
        "resolution": shards.resolution,
        "num_points": params["evaluate"]["num_points"],
        "seconds": round(seconds, 1),
        "report_mb": round((folder / paths.EVALUATION / "report.html").stat().st_size / 1e6, 2),
    }


def stage1(_options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    link(folder, [paths.VAE, paths.SDF, PARAMS_FILE])
    train, val = (
        [
            row
            for file in latents_files(ROOT / paths.LATENTS, split)
            for row in read_rows(file, remedy="run dvc repro encode")
        ]
        for split in ("train", "val")
    )
    rows, schema = [*train, *val], train[0].schema
    lengths = np.array([len(row["mean"][0]) // row["latent_channels"][0].as_py() for row in rows])
    taken = int((lengths.cumsum() <= NUM_VECTORS).sum()) + 1
    (folder / paths.LATENTS).mkdir(parents=True)
    write_rows(folder / latents_file(paths.LATENTS, "train"), rows[:taken], schema)
    write_rows(folder / latents_file(paths.LATENTS, "val"), val, schema)
    seconds = seconds_of_stage("stage1", folder)
    figures = json.loads((folder / paths.METRICS / "stage1.json").read_text())
    return conditions(pick_device()) | {
        "num_vectors": int(lengths[:taken].sum()),
        "num_distinct": figures["num_vectors"],
        "seconds": round(seconds, 1),
    }


def voxelize(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    meshes = {"meshes": str(options.folder.absolute()), "resolution": options.resolution, "max_rejected_share": 0.99}
    write_params(folder, meshes)
    minutes = seconds_of_stage("voxelize", folder) / 60
    index, rejects = pd.read_parquet(folder / paths.SDF / INDEX), pd.read_parquet(folder / paths.SDF / REJECTS)
    seconds = pd.read_parquet(folder / paths.TIMINGS / "voxelize.parquet").sort_values("seconds")
    return {
        "command": command(),
        "device": processor(),
        "resolution": options.resolution,
        "minutes": minutes,
        "ply_files": sum(path.is_file() for path in options.folder.rglob("*.ply")),
        "in_index": len(index),
        "rejected": len(rejects),
        "watertight": int(index.watertight.sum()),
        "shells": int((index["mode"] == "shell").sum()),
        "seconds_quantiles": {str(share): float(seconds.seconds.quantile(share)) for share in SHARES},
        "slowest": dict(zip(seconds.name.tail(10), seconds.seconds.tail(10), strict=True)),
        "bad_flip_quantiles": {
            group: {str(share): float(rows.bad_flip_ratio.quantile(share)) for share in SHARES}
            for group, rows in (("closed", index[index.watertight]), ("open", index[~index.watertight]))
        },
        "bad_flips_above_0.03": int((index.bad_flip_ratio > 0.03).sum()),
        "rejects": {Path(file).name: reason for file, reason in zip(rejects.file, rejects.reason, strict=True)},
    }


def main() -> None:
    parser = command_line(__doc__)
    stages = parser.add_subparsers(required=True)
    for measure in (evaluate, stage1, voxelize):
        stage = stages.add_parser(measure.__name__)
        stage.set_defaults(measure=measure)
        add_json(stage, f"stages_{measure.__name__}.json")
        if measure is voxelize:
            stage.add_argument("folder", type=Path)
            stage.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        result = options.measure(options, Path(folder))
    write_json(options.json, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
