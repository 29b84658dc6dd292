"""How much memory a piece of work needs."""

from pathlib import Path

import torch

MB = 1e6


class PeakMemory:
    """The highest mark since this was made: on a GPU what its tensors took, else what the whole process held.

    The process's mark is Linux's; elsewhere there is none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marked = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the mark VmHWM
            except OSError:
                self._marked = False

    def megabytes(self) -> float | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / MB
        if not self._marked:
            return None
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) * 1024 / MB
