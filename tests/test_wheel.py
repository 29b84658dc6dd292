"""What others install: the wheel has every room and nothing else, and works where no DVC and no Prefect is."""

import ast
import json
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.readme import make_project, run_shell_lines, the_block
from tests.wheel import ROOT, SPCONV, copy_sources, make_environment, metadata, pip, required, run

LIBRARY = sorted(path for path in (ROOT / "model").rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def test_the_wheel_holds_every_file_of_every_room_and_nothing_else(wheel: Path):
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    rooms = [f"shape_tokenizer/{path.relative_to(ROOT / 'model')}" for path in LIBRARY]
    shipped = [f"shape_tokenizer/{path.relative_to(ROOT)}" for path in (ROOT / "pretrained").glob("tokenizer_*/*")]
    assert sorted(names) == sorted(rooms + shipped)


def imports(folder: str) -> Iterator[str]:
    """Names of the packages of others, by their top level, that the code of a folder imports anywhere."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield str(node.module).split(".")[0]


# What others pin to one version of theirs: torch, where there is a GPU, and pydantic.
PARTS = {"pydantic_core", "triton"}
NOT_LOCKED = {"dvclive", "trackio", "wandb"}  # extras by their own names, each imported where it is asked for


@pytest.mark.parametrize(
    ("folders", "extras"), [(["model"], [SPCONV, "dask"]), (["flows", "model", "tasks"], [SPCONV, "dask", "pipeline"])]
)
def test_what_is_imported_is_required(wheel: Path, folders: list[str], extras: list[str]):
    """By its own name: that another dependency brings it today is no promise."""
    imported = {name for folder in folders for name in imports(folder)}
    imported -= {"flows", "model", "tasks", *PARTS, *NOT_LOCKED, *sys.stdlib_module_names}
    assert set(metadata(wheel).metadata.get_all("Provides-Extra") or []) >= NOT_LOCKED
    required_names = {canonicalize_name(requirement.name) for requirement in required(metadata(wheel), extras)}
    brought_by = packages_distributions()
    missing = {name for name in imported if not required_names & set(map(canonicalize_name, brought_by[name]))}
    assert not missing


ABSENT = ["dvc", "fastapi", "flows", "model", "prefect", "pytest", "tasks", "tests"]


def test_the_library_is_whole_where_neither_dvc_nor_prefect_nor_this_checkout_is(environment: Path, tmp_path: Path):
    """Every module can be imported, but for the kernels, which need Triton and with it a GPU."""
    code = [path.relative_to(ROOT / "model").with_suffix("") for path in LIBRARY if path.suffix == ".py"]
    modules = [".".join(("shape_tokenizer", *path.parts)) for path in code if "kernel" not in str(path)]
    program = f"""
import importlib, importlib.util
for module in {modules!r}:
    importlib.import_module(module.removesuffix(".__init__"))
print(*(name for name in {ABSENT!r} if importlib.util.find_spec(name)))
"""
    assert run([environment / "bin" / "python", "-c", program], tmp_path).split() == []


def test_a_checkout_that_is_installed_for_editing_gives_the_library_the_same_name(wheel: Path, tmp_path: Path):
    """As make setup installs it: shape_tokenizer is its model/, and model is found only where one stands in it."""
    python = make_environment(tmp_path / "environment", wheel)
    sources = copy_sources(tmp_path / "sources")
    pip("--python", python, "install", "--no-index", "--no-deps", "--no-build-isolation", "--editable", sources)
    program = "import importlib.util, shape_tokenizer.errors as e; print(e.__file__, importlib.util.find_spec('model'))"
    assert run([python, "-c", program], tmp_path).split() == [str(sources / "model" / "errors.py"), "None"]
    program = "import model.errors as e; print(e.__file__)"
    assert run([python, "-c", program], sources).strip() == str(sources / "model" / "errors.py")
    assert "encode" in run([python.with_name("shape-tokenizer"), "--help"], tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("oldest", [True, False], ids=["oldest", "newest"])
def test_a_full_install_of_what_the_ranges_allow_runs_readmes_lines(wheel: Path, tmp_path: Path, oldest: bool):
    """With pip, from the index that it is set up for."""
    venv.create(tmp_path / "environment", symlinks=True)
    python = tmp_path / "environment" / "bin" / "python"
    requirements = required(metadata(wheel), [SPCONV]) if oldest else ()
    pip("--python", python, "install", f"{wheel}[{SPCONV}]", *map(lower_bound, requirements))
    print(run([sys.executable, "-m", "pip", "--python", python, "list"], tmp_path))
    make_project(tmp_path / "project", tmp_path / "environment")
    printed = run([python, "-c", the_block("python")], tmp_path / "project")
    run_shell_lines(tmp_path / "project")
    sequence = json.loads((tmp_path / "project" / "tokens.jsonl").read_text())["tokens"]
    assert int(printed.split()[0]) < len(sequence)
    absent = f"import importlib.util; print(*(name for name in {ABSENT!r} if importlib.util.find_spec(name)))"
    assert not run([python, "-c", absent], tmp_path).split()


def lower_bound(requirement: Requirement) -> str:
    (version,) = (bound.version for bound in requirement.specifier if bound.operator in (">=", "=="))
    return f"{requirement.name}=={version}"
