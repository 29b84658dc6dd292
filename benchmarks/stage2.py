"""What a parameter of stage 2 is worth: stage 2 and evaluate with several values of it, all else equal.

    .venv/bin/python benchmarks/stage2.py lambda_commitment 0.25 4 16        (after dvc repro)
    .venv/bin/python benchmarks/stage2.py lambda_outside 0 0.1

Writes stage2_KEY.json beside this file, after each value, and prints the table.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from benchmarks.measure import AS_DVC_RUNS_IT
from tasks.run import PARAMS_FILE, paths

ROOT = Path(__file__).parents[1]

SHARED = [paths.SDF, paths.VAE, paths.CODEBOOK, paths.PASS_TOKEN.parent, paths.METRICS / "stage1_history.tsv"]
FIGURES = ["spurious_area", "cd_l1", "cd_l1_median", "normal_consistency", "sdf_l1", "sign_errors"]


def measure(key: str, value: float) -> dict[str, dict[str, float]]:
    """Rows floor, vae, stage1 and stage2 of evaluate, and what stage 2 says of the codebook on held-out shapes."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in SHARED:
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / path).symlink_to(ROOT / path)
        values = yaml.safe_load((ROOT / PARAMS_FILE).read_text())
        assert key in values["stage2"], f"{key} is no parameter of stage 2"
        values["stage2"][key] = value
        (Path(scratch) / PARAMS_FILE).write_text(yaml.safe_dump(values))
        environment = os.environ | AS_DVC_RUNS_IT | {"PYTHONPATH": str(ROOT)}
        for stage in ("stage2", "evaluate"):
            subprocess.run([sys.executable, "-m", f"tasks.{stage}"], cwd=scratch, env=environment, check=True)
        metrics, stage2 = (
            json.loads((Path(scratch) / paths.METRICS / f"{stage}.json").read_text())
            for stage in ("evaluate", "stage2")
        )
    rows = {
        row: {name: metrics[row][name] for name in FIGURES if name in metrics[row]}
        for row in ("floor", "vae", "stage1", "stage2")
    }
    rows["stage2"] |= {name: stage2["heldout"][name] for name in ("usage", "perplexity")}
    rows["stage2"] |= {"val_l1": stage2["after"]["val_l1"], "val_l1_before": stage2["before"]["val_l1"]}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key", help="of section stage2 of params.yaml")
    parser.add_argument("values", type=float, nargs="+")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    result = {
        "command": f"python benchmarks/stage2.py {options.key} {' '.join(f'{value:g}' for value in options.values)}",
        "device": device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        options.key: {},
    }
    for value in options.values:
        result[options.key][f"{value:g}"] = measure(options.key, value)
        Path(__file__).with_name(f"stage2_{options.key}.json").write_text(json.dumps(result, indent=2) + "\n")
    names = list(result[options.key][f"{options.values[0]:g}"]["stage2"])
    print(f"{options.key} | " + " | ".join(names))
    for value, table in result[options.key].items():
        print(f"{value} | " + " | ".join(f"{table['stage2'][name]:.5f}" for name in names))


if __name__ == "__main__":
    main()
