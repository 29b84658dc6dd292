"""What all benchmarks have in common: command line, clock, memory, and what a result says of its making.

Each module answers the question at its head and writes its figures as JSON; README.md has the tables. Nothing heavy is
imported here: voxelize also runs in environments without torch, and sets the number of threads before numpy reads it.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent
AS_DVC_RUNS_IT = {"GOMP_SPINCOUNT": "1000"}  # of a stage's environment: dvc.yaml


def command_line(question: str | None, json_name: str | None = None) -> argparse.ArgumentParser:
    """A parser whose --help is the module's docstring, with --json FILE where the module has one result."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    if json_name:
        add_json(parser, json_name)
    return parser


def add_json(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--json",
        type=Path,
        default=FOLDER / name,
        metavar="FILE",
        help=f"where the result goes (benchmarks/{name})",
    )


def add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peers", action="store_true", help="measure vector-quantize-pytorch too, from PYTHONPATH")


def check_peers(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with an error where the other library is asked for and missing, before anything is measured."""
    if options.peers and find_spec("vector_quantize_pytorch") is None:
        parser.error("--peers, but vector_quantize_pytorch is not installed; put its folder on PYTHONPATH (see --help)")


def command() -> str:
    """The command that runs now, without the folders of absolute paths: a result names no place of this machine."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *words])


def conditions(device: "torch.device") -> dict[str, Any]:
    """What the result of a benchmark that uses torch begins with: command, device, version of torch."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"command": command(), "device": name, "torch": torch.__version__}


def processor(num_cores: int | None = None) -> str:
    """So many of this machine's CPU cores, or those that this process may use, with the model's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)
    count = num_cores or len(os.sched_getaffinity(0))
    return f"{count} CPU core{'s' if count > 1 else ''}, {model}"


def write_json(path: Path, result: dict[str, Any]) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")


def seconds_of_stage(stage: str, folder: Path) -> float:
    """Run a stage of this checkout on the files of another folder, as DVC runs it; its wall time."""
    environment = os.environ | AS_DVC_RUNS_IT | {"PYTHONPATH": str(ROOT)}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"tasks.{stage}"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def watch_memory(device: "torch.device") -> Callable[[], float]:
    """A function that returns the peak since now, above what is used now, in MB: of the GPU or of this process."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    resident = _of_process("VmRSS")
    return lambda: (_of_process("VmHWM") - resident) / 1e6


def _of_process(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def wait(device: "torch.device") -> None:
    """Until the GPU has done what was launched; at once on a CPU."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: "torch.device", repeats: int) -> float:
    """Median milliseconds of so many runs, after one that does not count; on a GPU between CUDA events."""
    import torch

    times = []
    for _ in range(repeats + 1):
        wait(device)
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            started = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - started))
    return median(times[1:])
