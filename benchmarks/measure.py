"""How benchmarks take times and memory, on a CPU or a GPU."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

AS_DVC_RUNS_IT = {"GOMP_SPINCOUNT": "1000"}  # of a stage's environment: dvc.yaml


def watch_memory(device: torch.device) -> Callable[[], float]:
    """What gives the peak above now, in MB: of the GPU's memory, or of the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    resident = _of_process("VmRSS")
    return lambda: (_of_process("VmHWM") - resident) / 1e6


def _of_process(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median milliseconds, after one run that counts for nothing; on a GPU between events of its own."""
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
