"""`kill -9` of a whole `dvc repro` at random moments, again and again: every file as if nothing had happened.

All stages are the real ones, on eight shapes. In the environment, KILLS is how many kills (20), SEED chooses their
moments (0), and CHECKOUT is a fresh clone with meshes and parameters of its own, of which two copies are tried instead.

Moments are spread evenly over an undisturbed run. Each is so many seconds after a stage of that run began, and the run
to be killed is killed that long after the same stage began in it. Counted from the start instead, kills would meet the
first stages alone, since each rerun loses seconds to its imports.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir, suppress
from pathlib import Path

import pytest
import yaml

from tasks.run import paths
from tests.tasks.conftest import ROOT, shapes, write_vae

KILLS, SEED = (int(os.environ.get(name, default)) for name, default in (("KILLS", 20), ("SEED", 0)))
OUTSIDE = (paths.RESUME, paths.VOXELIZE_SCRATCH.parent, paths.TIMINGS)  # unfinished work, and seconds
FEW_STEPS = {"warmup_steps": 2, "log_every": 5, "save_every": 5}
FEW_OF_ALL = {
    "upstream": {"fetch_meshes": []},
    "voxelize": {"meshes": "meshes", "resolution": 32, "shapes_per_shard": 3},
    "import_vae": {"checkpoint": "vae.safetensors"},
    "encode": {"train_symmetries": 4, "heldout_symmetries": 4},
    "codebook": {"num_codes": 16},
    "stage1": FEW_STEPS | {"steps": 60, "batch_size": 64, "kmeans_iterations": 5, "recon_every": 20},
    "gate": {
        "min_usage": 0.0,
        "min_perplexity_ratio": 0.0,
        "max_top_share": 1.0,
        "max_error_ratio": 1e9,
        "min_tokens_per_code": 1,
    },
    "stage2": FEW_STEPS | {"steps": 40, "batch_voxels": 24000, "shape_voxels": 11000, "validate_every": 10},
    "evaluate": {"num_points": 2000, "report_views": 1},
}
FEW_OF_ALL["final_gate"] = FEW_OF_ALL["gate"] | {"min_l1_gain": -1e9}


def write_checkout(root: Path) -> None:
    """The code, the graph, weights, a few meshes, and parameters with which all stages are done in seconds."""
    for folder in ("model", "tasks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, root)
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, changes in FEW_OF_ALL.items():
        values[section] |= changes
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    for name, mesh in shapes().items():
        file = root / "meshes" / f"{name}.ply"
        file.parent.mkdir(parents=True, exist_ok=True)
        mesh.export(file)
    with chdir(root):
        write_vae()
        (paths.VAE / "model.safetensors").rename("vae.safetensors")
        shutil.rmtree(paths.VAE.parent)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet", "--no-scm"], cwd=root, check=True)


def start(root: Path) -> "subprocess.Popen[bytes]":
    """What `make repro` does, in a process group of its own."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with (root / "repro.log").open("ab") as log:
        return subprocess.Popen(
            ["sh", "-c", "python -m tasks.inputs && exec python -m dvc repro"],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stages_begun(root: Path, skip: int = 0) -> list[str]:
    """The stages that the log names from that character on, in their order."""
    return re.findall(r"Running stage '(?:.*:)?(\S+?)'", (root / "repro.log").read_text()[skip:])


def undisturbed_run(root: Path) -> tuple[float, dict[str, float]]:
    """How many seconds it took, and after how many each stage began; before any is the stage ""."""
    begun = {"": 0.0}
    started = time.monotonic()
    run = start(root)
    while run.poll() is None:
        time.sleep(0.05)
        for stage in stages_begun(root):
            begun.setdefault(stage, time.monotonic() - started)
    assert run.returncode == 0, (root / "repro.log").read_text()
    return time.monotonic() - started, begun


def kill(root: Path, stages: list[str], seconds: float) -> str:
    """Kill a run so many seconds after the first of these stages began, or a later one where that is done: in which."""
    log = root / "repro.log"
    log.touch()
    before = len(log.read_text())
    run = start(root)
    while run.poll() is None and not ("" in stages or set(stages) & set(stages_begun(root, before))):
        time.sleep(0.05)
    with suppress(subprocess.TimeoutExpired):
        run.wait(seconds)
        return "none, since all was done"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    begun = stages_begun(root, before)
    return f"{begun[-1] if begun else 'none yet'} (after {seconds:.1f} s)"


def results(root: Path) -> dict[str, bytes]:
    """Every file that stages leave, and DVC's record of them."""
    files = [file for folder in ("artifacts", "data", "metrics") for file in (root / folder).rglob("*")]
    return {
        str(name): (root / name).read_bytes()
        for name in (Path("dvc.lock"), *(file.relative_to(root) for file in files if file.is_file()))
        if not any(name.is_relative_to(outside) for outside in OUTSIDE)
    }


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_after_kills_at_random_moments_every_file_is_an_undisturbed_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    if "CHECKOUT" in os.environ:
        shutil.copytree(os.environ["CHECKOUT"], undisturbed, symlinks=True, ignore=shutil.ignore_patterns(".venv"))
    else:
        write_checkout(undisturbed)
    shutil.copytree(undisturbed, killed, symlinks=True)
    seconds, begun = undisturbed_run(undisturbed)

    randomly, kills = random.Random(SEED), []
    for moment in sorted(randomly.uniform(0, seconds) for _ in range(KILLS)):
        done = sum(second <= moment for second in begun.values()) - 1
        kills.append(kill(killed, list(begun)[done:], moment - list(begun.values())[done]))
    assert start(killed).wait() == 0, (killed / "repro.log").read_text()
    log = (killed / "repro.log").read_text()
    with capsys.disabled():
        print(f"{seconds:.0f} s undisturbed, training went on {log.count('going on from step')} times, killed in")
        print(", ".join(kills))
    expected, found = results(undisturbed), results(killed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
