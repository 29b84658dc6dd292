"""Work in several processes: each has its share, of a batch while all hold the same weights, or of independent items.

Outside in_process_group() there is one rank, and every function here is what it would be without this module.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=10)  # the longest that a rank may be behind the others
LONG_TIMEOUT = timedelta(days=7)  # where they meet at the end only: one may have the slower GPU all the way

CPU = torch.device("cpu")

T = TypeVar("T")


@contextmanager
def in_process_group(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Within the block, or the function it decorates, this process is one of those that torchrun started, each with a
    GPU of its own where there are any. Started otherwise, it is the only one. None may be behind by the timeout.

    After an exception the group is left with the process and not here: the others, who fail without this one, must not
    do so before it has told why.
    """
    if "RANK" not in os.environ:  # as torchrun sets it
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timeout)
    yield
    dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def global_mean(values: Tensor) -> Tensor:
    """What averages over ranks to the mean over all elements of all ranks, in value and in gradient.

    A rank may have fewer elements than another, or none; where all have none it is 0.
    """
    if num_ranks() == 1:
        return values.mean() if values.numel() else values.sum()
    num_elements = all_reduce_sum(torch.full((), values.numel(), dtype=torch.float64, device=values.device))
    return values.sum() * (num_ranks() / num_elements.clamp(min=1)).to(values.dtype)


def global_variance(rows: Tensor) -> Tensor:
    """Mean over columns of the variance over the rows of all ranks; the same on all of them."""
    rows = rows.double()
    sums = torch.cat([rows.new_full((1,), len(rows)), rows.sum(0)])
    count, total = all_reduce_sum(sums).split([1, rows.shape[1]])
    squares = all_reduce_sum((rows - total / count).square().sum())
    return (squares / (count * rows.shape[1])).squeeze().float()


def all_reduce_sum(counts: Tensor) -> Tensor:
    """The sum over ranks, the same on all of them."""
    if num_ranks() > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    return counts


def all_reduce_min(values: Tensor) -> Tensor:
    """The minimum over ranks, element by element, the same on all of them."""
    if num_ranks() > 1:
        values = values.clone()
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return values


def own_part(rows: Tensor) -> Tensor:
    """The rows of a whole that this rank works on; none where there are fewer than ranks."""
    return rows[rank() :: num_ranks()]


def own_span(sizes: Sequence[float]) -> range:
    """The indices of items, in one piece, that this rank works on: by size about as much as every other, or none.

    Spans of ranks in their order are the items in theirs.
    """
    size = torch.tensor(sizes, dtype=torch.float64)
    middles = size.cumsum(0) - size / 2
    owners = (middles / size.sum() * num_ranks()).nan_to_num().long().clamp(max=num_ranks() - 1)
    return range(int((owners < rank()).sum()), int((owners <= rank()).sum()))


def gather_lists(own: list[T]) -> list[T]:
    """The first rank gets the lists of all, one after the other; the others get none."""
    if num_ranks() == 1:
        return own
    lists: list[Any] = [None] * num_ranks()
    dist.gather_object(own, lists if rank() == 0 else None)
    return list(chain.from_iterable(lists)) if rank() == 0 else []


@contextmanager
def shared(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """All ranks get what the first gets of a context manager, such as a folder. It ends when all are at the end."""
    if num_ranks() == 1:
        with make() as made:
            yield made
        return
    with make() if rank() == 0 else nullcontext() as own:
        given: list[Any] = [own]
        dist.broadcast_object_list(given, device=CPU)
        yield given[0]
        on_any_rank(False)  # waits for all


def all_gather(rows: Tensor) -> Tensor:
    """All ranks' rows, one after the other; each has to have as many."""
    if num_ranks() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(num_ranks())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over ranks, element by element, the same on all of them."""
    return all_reduce_sum(values) / num_ranks() if num_ranks() > 1 else values


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Give every rank the mean of all ranks' gradients, in one message."""
    if num_ranks() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce_mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([gradient.numel() for gradient in gradients])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def on_any_rank(flag: bool) -> bool:
    """Whether it holds on some rank. On the CPU, so that no GPU has to finish its work for the answer."""
    return bool(all_reduce_sum(torch.tensor(int(flag))))
