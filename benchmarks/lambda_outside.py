"""What the sign beyond the band is worth: stage 2 with lambda_outside 0, and with the value of params.yaml.

    .venv/bin/python benchmarks/lambda_outside.py        (after dvc repro; two runs of stage 2 and evaluate)

Writes lambda_outside.json beside this file and prints the table.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tasks import paths  # noqa: E402  # the root comes first, so that this runs as a plain script
from tasks.settings import PARAMS_FILE  # noqa: E402

SHARED = [paths.SDF, paths.VAE, paths.CODEBOOK, paths.PASS_TOKEN.parent, paths.METRICS / "stage1_history.tsv"]
FIGURES = ["spurious_area", "cd_l1", "cd_l1_median", "normal_consistency", "sdf_l1", "sign_errors"]


def measure(lambda_outside: float) -> dict[str, dict[str, float]]:
    """Rows floor, vae, stage1 and stage2 of evaluate, after stage 2 with this weight."""
    with tempfile.TemporaryDirectory() as scratch:
        for path in SHARED:
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(scratch) / path).symlink_to(ROOT / path)
        values = yaml.safe_load((ROOT / PARAMS_FILE).read_text())
        values["stage2"]["lambda_outside"] = lambda_outside
        (Path(scratch) / PARAMS_FILE).write_text(yaml.safe_dump(values))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "passive"}
        for stage in ("stage2", "evaluate"):
            subprocess.run([sys.executable, "-m", f"tasks.{stage}"], cwd=scratch, env=environment, check=True)
        metrics = json.loads((Path(scratch) / paths.METRICS / "evaluate.json").read_text())
    return {
        row: {key: metrics[row][key] for key in FIGURES if key in metrics[row]}
        for row in ("floor", "vae", "stage1", "stage2")
    }


def main() -> None:
    default = yaml.safe_load((ROOT / PARAMS_FILE).read_text())["stage2"]["lambda_outside"]
    rows = {str(value): measure(value) for value in (0.0, default)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    result = {
        "command": "python benchmarks/lambda_outside.py",
        "device": device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "lambda_outside": rows,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    print("lambda_outside | " + " | ".join(FIGURES))
    for value, table in rows.items():
        print(f"{value} | " + " | ".join(f"{table['stage2'].get(key, float('nan')):.5f}" for key in FIGURES))


if __name__ == "__main__":
    main()
