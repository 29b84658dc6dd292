"""How long evaluate takes for 100 shapes, with the networks of the last run.

    .venv/bin/python -m benchmarks.evaluate_time        (after dvc repro)

The shapes are 100 of the pipeline's own, training shapes among them: this measures time, not quality. Writes
evaluate_time.json beside this file.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from benchmarks.measure import AS_DVC_RUNS_IT
from tasks.run import PARAMS_FILE, paths
from tasks.shards import open_shards
from tasks.shards.shards import INDEX, write_index

ROOT = Path(__file__).parents[1]

NUM_SHAPES = 100
ALMOST_ALL = {"val_share": 0.02, "test_share": 0.95}  # of the meshes in test: more than 100 of them
NEEDED = [paths.VAE, paths.CODEBOOK, paths.TOKENIZER]
HISTORIES = [paths.METRICS / f"{stage}_history.tsv" for stage in ("stage1", "stage2")]


def main() -> None:
    environment = os.environ | AS_DVC_RUNS_IT | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as scratch:
        for path in [paths.MESHES, *NEEDED, *HISTORIES]:
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / path).symlink_to(ROOT / path)
        values = yaml.safe_load((ROOT / PARAMS_FILE).read_text())
        values["voxelize"] |= ALMOST_ALL
        (Path(scratch) / PARAMS_FILE).write_text(yaml.safe_dump(values))
        subprocess.run([sys.executable, "-m", "tasks.voxelize"], cwd=scratch, env=environment, check=True)
        shards = open_shards(Path(scratch) / paths.SDF)
        surplus = shards.names("test")[NUM_SHAPES:]
        assert len(shards.names("test")) >= NUM_SHAPES, f"only {len(shards.names('test'))} shapes in the test split"
        index = shards.index.assign(split=shards.index.split.where(~shards.index.index.isin(surplus), "train"))
        write_index(
            shards.directory / INDEX,
            index.reset_index(),
            resolution=shards.resolution,
            truncation_voxels=shards.truncation_voxels,
        )
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tasks.evaluate"], cwd=scratch, env=environment, check=True)
        seconds = time.perf_counter() - start
        report_bytes = (Path(scratch) / paths.EVALUATION / "report.html").stat().st_size
    result = {
        "command": "python -m benchmarks.evaluate_time",
        "num_shapes": NUM_SHAPES,
        "resolution": shards.resolution,
        "num_points": values["evaluate"]["num_points"],
        "seconds": round(seconds, 1),
        "report_mb": round(report_bytes / 1e6, 2),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
