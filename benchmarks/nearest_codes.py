"""The row `nearest` of benchmarks/codebook.py: nearest_codes beside torch.cdist and vector-quantize-pytorch.

And how that script takes times and memory, on a CPU or a GPU.
"""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from model.quantizer import nearest_codes

FLOAT32_TFLOPS = {"H100": 67, "H200": 67}  # of NVIDIA's data sheets (SXM), without tensor cores


def measure_nearest(device: torch.device, peers: bool) -> dict:
    """1 M vectors of dim 64 and 8192 codes on a GPU; 20 000 and 1024 on a CPU."""
    num, size = (1_000_000, 8192) if device.type == "cuda" else (20_000, 1024)
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(size, 64, generator=generator).to(device)
    vectors = torch.randn(num, 64, generator=generator).to(device)
    figures: dict[str, object] = {"row": "nearest", "num_vectors": num, "size": size, "dim": 64}
    ways: dict[str, Callable[[], Tensor]] = {
        "nearest_codes": lambda: nearest_codes(vectors, codes),
        "cdist_argmin": lambda: torch.cdist(vectors, codes).argmin(1),
    }
    if peers:
        ways |= peer_assignments(vectors, codes)
    for name, work in ways.items():
        try:
            figures[name] = measure_assignment(work, device, 2 * num * size * 64)
        except torch.OutOfMemoryError as error:
            figures[name] = {"error": str(error).splitlines()[0]}
    picked = nearest_codes(vectors, codes)
    worst, wrong = 0.0, 0
    for rows, got in zip(vectors.split(8192), picked.split(8192), strict=True):
        best = (rows[:, None].double() - codes[None].double()).square().sum(2) if device.type == "cpu" else None
        if best is None:
            exact = codes.double()
            best = exact.square().sum(1) - 2 * rows.double() @ exact.T + rows.double().square().sum(1, keepdim=True)
        chosen, least = best.gather(1, got[:, None])[:, 0], best.min(1).values
        wrong += int((best.argmin(1) != got).sum())
        worst = max(worst, float(((chosen - least) / least).max()))
    return figures | {"other_index_than_float64": wrong, "worst_relative_excess": worst}


def measure_assignment(work: Callable[[], Tensor], device: torch.device, operations: int) -> dict:
    work()
    peak = watch_memory(device)
    work()
    wait(device)
    memory = peak()
    ms = timed(work, device, 7)
    tflops = operations / ms / 1e9
    figures = {"ms": ms, "extra_memory_mb": memory, "tflops": tflops}
    model = torch.cuda.get_device_name() if device.type == "cuda" else ""
    limit = next((limit for gpu, limit in FLOAT32_TFLOPS.items() if gpu in model), None)
    return figures | ({"share_of_float32_limit": tflops / limit} if limit else {})


def peer_assignments(vectors: Tensor, codes: Tensor) -> dict[str, Callable[[], Tensor]]:
    """vector-quantize-pytorch's whole forward without training, and its distances and argmax alone."""
    from vector_quantize_pytorch import VectorQuantize
    from vector_quantize_pytorch.vector_quantize_pytorch import cdist

    peer = VectorQuantize(codes.shape[1], len(codes)).to(codes.device).eval()
    peer.codebook = codes

    @torch.no_grad()
    def forward() -> Tensor:
        return peer(vectors[None])[1][0]

    return {
        "vector_quantize_pytorch_cdist": lambda: (-cdist(vectors[None], codes[None])).argmax(2)[0],
        "vector_quantize_pytorch_forward": forward,
    }


def watch_memory(device: torch.device) -> Callable[[], float]:
    """What gives the peak above now, in MB: of the GPU's memory, or of the process's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return lambda: (torch.cuda.max_memory_allocated() - before) / 1e6
    reset = Path("/proc/self/clear_refs")
    reset.write_text("5")  # Linux: the peak counts from here
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return lambda: (high_water() - resident) / 1e6


def high_water() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
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
