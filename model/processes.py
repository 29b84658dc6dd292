"""Several processes that train one codebook (torchrun): each looks at its part of the vectors, all keep the same codes.

Sums are reduced by every process at every step, also by one that has no vectors, and decisions are taken on reduced
values only. In one process all of this is the identity.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def several_processes() -> Iterator[None]:
    """Joins the group that torchrun has started, if it has: NCCL where there are GPUs, one each, else gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def process_number() -> int:
    """0 is the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_part(rows: Tensor) -> Tensor:
    """The rows that this process looks at; none where there are fewer rows than processes."""
    return rows[process_number() :: num_processes()]


def sum_over_processes(values: Tensor) -> Tensor:
    """In place."""
    if num_processes() > 1:
        dist.all_reduce(values)
    return values


def least_over_processes(values: Tensor) -> Tensor:
    """In place, element by element."""
    if num_processes() > 1:
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def rows_of_all_processes(rows: Tensor) -> Tensor:
    """One process's rows after the other's; each has to have as many."""
    if num_processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(num_processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean_over_processes(mean: Tensor, count: int) -> Tensor:
    """The mean over all `count`s; its gradient is this process's part, so that gradients add up to the whole one's."""
    if num_processes() == 1:
        return mean
    total = sum_over_processes(torch.tensor(float(count), device=mean.device))
    part = (mean if count else mean.nan_to_num()) * (count / total)
    return part + (sum_over_processes(part.detach().clone()) - part.detach())
