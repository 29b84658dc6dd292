"""Operators: one name and one schema, a reference for the CPU, a kernel for CUDA, between which PyTorch chooses.

They are registered under the package's root name: `model` in a checkout, `shape_tokenizer` where it is installed.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

NAMESPACE = __name__.split(".")[0]
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")


def operator(schema: str, *, cuda: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function the operator of its name, and what the operator does on the CPU.

    `schema` is torch.library's, without the name. `cuda` is the module, relative to the function's package, whose
    function of the same name and arguments does the same on CUDA. It is imported when it is first called: elsewhere
    there is no Triton. An operator has no gradient; it is called within a torch.autograd.Function.
    """

    def register(reference: Callable[P, R]) -> Callable[P, R]:
        name, package = reference.__name__, reference.__module__.rpartition(".")[0]

        @cache
        def kernel() -> Callable[..., R]:
            return getattr(import_module(cuda, package), name)

        def on_cuda(*arguments: Any) -> R:
            return kernel()(*arguments)

        _LIBRARY.define(name + schema)
        _LIBRARY.impl(name, reference, "CPU")
        _LIBRARY.impl(name, on_cuda, "CUDA")
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register
