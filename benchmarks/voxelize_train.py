"""The voxelize stage on a whole folder of meshes: minutes, rejects and bad flips.

    python -m benchmarks.voxelize_train FOLDER --output FILE [--resolution 128]

Runs the stage itself with the parameters of params.yaml, but for the folder, the resolution and the rejected share, in
a temporary folder that is removed afterwards, on the cores that this process may use.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

ROOT = Path(__file__).parents[1]
SHARES = (0.5, 0.75, 0.9, 0.99, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["voxelize"] |= {
        "meshes": str(options.folder.absolute()),
        "resolution": options.resolution,
        "max_rejected_share": 0.99,
    }
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        (here / "params.yaml").write_text(yaml.safe_dump(params))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "tasks.voxelize"], cwd=here, env=environment, check=True)
        minutes = (time.monotonic() - started) / 60
        index = pd.read_parquet(here / "data/sdf/index.parquet")
        rejects = pd.read_parquet(here / "data/sdf/rejects.parquet")
        seconds = pd.read_parquet(here / "data/sdf_seconds.parquet").sort_values("seconds")
    num_files = sum(path.is_file() for path in options.folder.rglob("*.ply"))
    report = {
        "resolution": options.resolution,
        "cores": len(os.sched_getaffinity(0)),
        "minutes": minutes,
        "ply_files": num_files,
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
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("minutes", "ply_files", "in_index", "rejected")}))


if __name__ == "__main__":
    main()
