"""Operators: what the CPU has, CUDA has under the same name and with the same arguments; importing needs no Triton."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path(__file__).parents[2] / "model"


def functions(file: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def operators() -> dict[str, tuple[ast.FunctionDef, Path]]:
    """The reference of each operator, and the file with its kernel for CUDA."""
    found = {}
    for file in MODEL.rglob("*.py"):
        for name, function in functions(file).items():
            for call in function.decorator_list:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "operator":
                    (module,) = (ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg == "cuda")
                    found[name] = function, file.parent.joinpath(*module.strip(".").split(".")).with_suffix(".py")
    return found


OPERATORS = operators()


def test_there_are_operators():
    assert {"convolve", "convolve_children", "norm_silu", "nearest"} <= OPERATORS.keys()


@pytest.mark.parametrize("name", OPERATORS)
def test_the_kernel_for_cuda_takes_what_the_reference_takes(name):
    reference, file = OPERATORS[name]
    kernel = functions(file)[name]
    assert [argument.arg for argument in kernel.args.args] == [argument.arg for argument in reference.args.args]


def test_they_are_registered_under_the_name_that_the_package_goes_by(tmp_path: Path):
    """In a process that knows it by the wheel's name, and where there is no Triton."""
    (tmp_path / "shape_tokenizer").symlink_to(MODEL, target_is_directory=True)
    program = """
import sys
sys.modules["triton"] = None  # importing it now raises ImportError
import torch, shape_tokenizer.quantizer, shape_tokenizer.vae
assert not hasattr(torch.ops.model, "convolve")
codes = torch.tensor([[0.0], [1.0], [2.0]])
print(torch.ops.shape_tokenizer.nearest(torch.tensor([[1.9], [0.2]]), codes, codes.mean(0))[0].tolist())
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "[2, 0]\n"
