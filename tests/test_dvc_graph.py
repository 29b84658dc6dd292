"""dvc.yaml says what the code says: the modules each stage imports, the parameters it reads, the paths it writes."""

import ast
import shutil
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import networkx
import pytest
import yaml
from dvc.repo import Repo
from pydantic import BaseModel

from tasks.run import Settings, load_settings, paths
from tasks.run.settings import Upstream

ROOT = Path(__file__).parents[1]
DVC_FILES = [Path("dvc.yaml"), Path("tasks/upstream/dvc.yaml")]
STAGES: dict[str, dict[str, Any]] = {  # an optional one is below `do`
    name: stage.get("do", stage)
    for file in DVC_FILES
    for name, stage in yaml.safe_load((ROOT / file).read_text())["stages"].items()
}

# Modules whose content cannot change a result: what settings holds is tracked as params, the rest carries or shows it.
# bricks holds a number that the shards' format and model.sdf's kernels cannot do without.
PLUMBING = {"model", "tasks.run"}
PLUMBING |= {
    f"model.{name}" for name in ("bricks", "errors", "files", "operators", "progress", "tables", "tensors", "warp")
}
PLUMBING |= {f"tasks.run.{name}" for name in ("code", "paths", "processes", "settings", "stage")}

# What no stage calls: stages give the tokenizer grids and no mesh files, and a cured reader must not retrain.
NOT_IN_STAGES = {"model.tokenizer.tokenizer": {"model.meshes"}}

# What each stage reads and writes, in the words of the code.
READS = {
    "fetch_meshes": set(),
    "fetch_vae": set(),
    "voxelize": {"${voxelize.meshes}"},
    "pretrain_vae": {paths.SDF},
    "import_vae": {"${import_vae.checkpoint}"},
    "encode": {paths.SDF, paths.VAE},
    "stage1": {paths.SDF, paths.VAE, paths.LATENTS},
    "gate": {paths.CODEBOOK, paths.LATENTS},
    "stage2": {paths.SDF, paths.VAE, paths.CODEBOOK, paths.PASS_TOKEN},
    "evaluate": {
        paths.SDF,
        paths.VAE,
        paths.CODEBOOK,
        paths.STAGE2,
        paths.METRICS / "stage1_history.tsv",
        paths.METRICS / "stage2_history.tsv",
        paths.CODEBOOK_PLOTS,
    },
    "final_gate": {paths.SDF, paths.STAGE2, paths.METRICS / "evaluate.json"},
    "twin": {paths.SDF, paths.VAE},
}
OUTS = {  # what DVC keeps
    "fetch_meshes": {paths.MESHES},
    "fetch_vae": {paths.FETCHED},
    "voxelize": {paths.SDF},
    "pretrain_vae": {paths.PRETRAINED},
    "import_vae": {paths.VAE},
    "encode": {paths.LATENTS},
    "stage1": {paths.CODEBOOK},
    "gate": {paths.PASS_TOKEN},
    "stage2": {paths.STAGE2},
    "evaluate": {paths.EVALUATION},
    "final_gate": {paths.TOKENIZER},
    "twin": {paths.TWIN},
}
KEPT_BY_GIT = {  # besides metrics/STAGE.json
    "pretrain_vae": {paths.METRICS / "pretrain_vae_history.tsv"},
    "stage1": {paths.METRICS / "stage1_history.tsv"},
    # each, because a table says what its axes are
    "gate": {
        paths.CODEBOOK_PLOTS / f"codebook_{name}"
        for name in ("neighbours.png", "pca.png", "spectrum.png", "spectrum.tsv", "use.png", "use.tsv")
    },
    "stage2": {paths.METRICS / "stage2_history.tsv"},
    "twin": {paths.METRICS / "twin_history.tsv"},
    "evaluate": {paths.HEADLINE, paths.PLOTS},
}

every_stage = pytest.mark.parametrize("stage", STAGES)


# --- code dependencies -------------------------------------------------------------------------------------------


@cache
def module_file(module: str) -> Path | None:
    """The file of a module of this project, relative to its root; None for anything else."""
    path = Path(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if path.parts[0] in ("model", "tasks") and (ROOT / file).is_file():
            return file
    return None


@cache
def tree(module: str) -> ast.Module:
    file = module_file(module)
    assert file is not None, f"{module} is imported but is no module of this project"
    return ast.parse((ROOT / file).read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """Modules of this project that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            found |= {source} | {f"{source}.{alias.name}" for alias in node.names}
    packages = {".".join(name.split(".")[:depth]) for name in found for depth in range(1, name.count(".") + 1)}
    unused = NOT_IN_STAGES.get(module, set())
    return frozenset(name for name in found | packages if module_file(name) and not name.startswith(tuple(unused)))


def absolute(module: str, node: ast.ImportFrom) -> str:
    """The module that `from X import` names in the text of another, X being relative or not."""
    file = module_file(module)
    assert file is not None
    parents = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    above = parents[: len(parents) - node.level + 1] if node.level else []
    return ".".join([*above, *([node.module] if node.module else [])])


def closure(module: str) -> set[str]:
    """The module and all that it imports, directly or not."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        reached |= waiting
        waiting = set(chain.from_iterable(imports(name) for name in waiting)) - reached
    return reached


def code_dependencies(stage: str) -> set[str]:
    """What dvc.yaml has to list: a file per module, the directory for a package within model/ or tasks/."""
    modules = (module_file(name) for name in closure(f"tasks.{stage}") - PLUMBING if tree(name).body)
    files = chain.from_iterable(with_resources(file) for file in modules if file)
    return {str(file if len(file.parts) == 2 else Path(*file.parts[:2])) for file in files}


def with_resources(module: Path) -> set[Path]:
    """The module and what it reads from beside it: report.html and report.js are report.py's."""
    return {path.relative_to(ROOT) for path in (ROOT / module).parent.glob(f"{module.stem}.*")}


def is_code(dependency: str) -> bool:
    return dependency.startswith(("model/", "tasks/"))


def lines(entries: set[str]) -> str:
    return "".join(f"\n      - {entry}" for entry in sorted(entries))


@every_stage
def test_stage_depends_on_every_module_it_imports_and_on_no_other(stage: str):
    if module_file(f"tasks.{stage}") is None:
        pytest.fail(f"tasks/{stage}.py does not exist")
    needed = code_dependencies(stage)
    declared = {entry for entry in STAGES[stage]["deps"] if is_code(entry)}
    assert declared == needed, f"deps of {stage} that are code should be:{lines(needed)}"


# --- parameters --------------------------------------------------------------------------------------------------


def leaves(prefix: str, model: type[BaseModel]) -> set[str]:
    """Full path of every single parameter below a section."""
    found = set()
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        nested = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        found |= leaves(f"{key}.", field.annotation) if nested else {key}
    return found


# No stage reads them; evaluate reads whether there is a twin.
OF_THE_GRAPH = {"version", *(f"upstream.{stage}" for stage in Upstream.model_fields)} - {"upstream.twin"}
OF_NO_RESULT = {"tracking.writer"}  # stages read it, and are not stale when it changes
ALL_PARAMETERS = leaves("", Settings) - OF_THE_GRAPH - OF_NO_RESULT


def expand(key: str) -> set[str]:
    found = {leaf for leaf in ALL_PARAMETERS if leaf == key or leaf.startswith(f"{key}.")}
    assert found, f"{key} is no parameter of tasks/settings.py"
    return found


def attribute_path(node: ast.AST) -> list[str]:
    """["settings", "stage1", "lr"] of the expression settings.stage1.lr; empty for another kind of expression."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inner = attribute_path(node.value)
        return [*inner, node.attr] if inner else []
    return []


def reads_below(node: ast.AST, name: str, module: str) -> set[str]:
    """Parameters that code reads from the variable `name`; a section that is passed on counts as all of it."""
    path = attribute_path(node) if isinstance(node, ast.Attribute) else []
    if path[:1] != [name]:
        return set(chain.from_iterable(reads_below(child, name, module) for child in ast.iter_child_nodes(node)))
    section, *rest = path[1:]
    assert section in Settings.model_fields, f"{module} reads {'.'.join(path)}, which DVC cannot track"
    key = f"{section}.{rest[0]}" if rest else section
    if key in OF_NO_RESULT | {name.split(".")[0] for name in OF_NO_RESULT}:
        return set()
    return expand(key if key in ALL_PARAMETERS else section)


def parameters_read(module: str) -> dict[str, set[str]]:
    """What each function of a module reads from an argument annotated as Settings."""
    found: dict[str, set[str]] = {}
    for function in ast.walk(tree(module)):
        if isinstance(function, ast.FunctionDef):
            for argument in [*function.args.args, *function.args.kwonlyargs]:
                if isinstance(argument.annotation, ast.Name) and argument.annotation.id == "Settings":
                    found[function.name] = reads_below(function, argument.arg, module)
    return found


def parameters_of_stage(stage: str) -> set[str]:
    """What the stage's module and the modules it imports read; of another stage's module, what is imported from it."""
    modules = {name for name in closure(f"tasks.{stage}") - PLUMBING if name.startswith("tasks.")}
    nodes = chain.from_iterable(ast.walk(tree(name)) for name in modules)
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    read: set[str] = set()
    for module in modules:
        of_another_stage = module.removeprefix("tasks.") in set(STAGES) - {stage}
        for function, parameters in parameters_read(module).items():
            if not of_another_stage or function in imported:
                read |= parameters
    return read


@every_stage
def test_stage_declares_exactly_the_parameters_it_reads(stage: str):
    if module_file(f"tasks.{stage}") is None:
        pytest.fail(f"tasks/{stage}.py does not exist")
    declared = set(chain.from_iterable(expand(key) for key in STAGES[stage]["params"]))
    read = parameters_of_stage(stage)
    assert declared - read == set(), f"{stage} declares parameters that it does not read:{lines(declared - read)}"
    assert read - declared == set(), f"{stage} reads parameters that it does not declare:{lines(read - declared)}"


@every_stage
def test_no_parameter_hides_from_the_run_cache(stage: str):
    """DVC's run cache leaves keys named size and nfiles out of its hash: a change would bring back the old output."""
    hidden = {leaf for key in STAGES[stage]["params"] for leaf in expand(key) if leaf != key}
    assert not [leaf for leaf in hidden if leaf.split(".")[-1] in ("size", "nfiles")], "list it by its full path"


def test_every_parameter_belongs_to_a_stage():
    declared = {leaf for stage in STAGES.values() for key in stage["params"] for leaf in expand(key)}
    assert declared == ALL_PARAMETERS


# --- files -------------------------------------------------------------------------------------------------------


def outs(stage: str) -> dict[str, dict[str, Any]]:
    """Paths of a stage's outs, each with its options."""
    listed = [*STAGES[stage]["outs"], *STAGES[stage].get("plots", [])]
    return dict(chain.from_iterable(entry.items() if isinstance(entry, dict) else [(entry, {})] for entry in listed))


@every_stage
def test_stage_reads_and_writes_the_paths_of_the_code(stage: str):
    assert stage in READS, f"name what {stage} reads and writes in READS, OUTS and KEPT_BY_GIT of this file"
    assert {entry for entry in STAGES[stage]["deps"] if not is_code(entry)} == {str(path) for path in READS[stage]}
    metrics = set() if stage in {"fetch_meshes", "fetch_vae"} else {paths.METRICS / f"{stage}.json"}
    small = KEPT_BY_GIT.get(stage, set()) | metrics
    assert set(outs(stage)) == {str(path) for path in OUTS[stage] | small}
    assert {path for path, options in outs(stage).items() if options.get("cache") is False} == {str(p) for p in small}


def test_what_metrics_show_prints_is_an_output():
    shown = yaml.safe_load((ROOT / "dvc.yaml").read_text())["metrics"]
    assert shown == [str(paths.HEADLINE)]
    assert (ROOT / paths.HEADLINE).is_file()


@every_stage
def test_no_output_outlives_its_inputs(stage: str):
    """persist: true would hand a stage its own old output, made from old inputs, which DVC then records as valid."""
    assert all(options.get("persist", False) is False for options in outs(stage).values())


@every_stage
def test_stage_checks_the_parameters_and_is_run_as_its_module(stage: str):
    assert STAGES[stage]["cmd"] == f"${{check}} && ${{python}} -m tasks.{stage}"


def test_both_files_start_stages_alike():
    main, upstream = (yaml.safe_load((ROOT / file).read_text())["vars"] for file in DVC_FILES)
    assert main == ["tasks/run/commands.yaml"]
    assert upstream == ["../../params.yaml", "../run/commands.yaml"]


# --- optional upstreams ------------------------------------------------------------------------------------------


def upstreams_of_evaluate(root: Path, parameters: dict[str, dict[str, Any]]) -> set[str]:
    (root / "params.yaml").write_text(yaml.safe_dump(parameters))
    with Repo(str(root)) as repo:
        graph = repo.index.graph
        evaluate = next(stage for stage in graph if stage.name == "evaluate")
        return {stage.name for stage in networkx.descendants(graph, evaluate)}


@pytest.mark.parametrize("own_meshes", [False, True])
@pytest.mark.parametrize(
    ("checkpoint", "vae_upstream"),
    [("vae.safetensors", set()), (paths.PRETRAINED, {"pretrain_vae@run"}), (paths.FETCHED, {"fetch_vae@run"})],
)
def test_optional_upstreams_join_only_when_asked_for(
    tmp_path: Path, own_meshes: bool, checkpoint: str | Path, vae_upstream: set[str]
):
    for file in [*DVC_FILES, Path("tasks/run/commands.yaml")]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    Repo.init(str(tmp_path), no_scm=True).close()
    parameters = yaml.safe_load((ROOT / "params.yaml").read_text())
    parameters["voxelize"]["meshes"] = "/somewhere/chairs" if own_meshes else str(paths.MESHES)
    parameters["import_vae"]["checkpoint"] = str(checkpoint)
    wanted = {*(() if own_meshes else ("fetch_meshes@run",)), *vae_upstream}
    parameters["upstream"] = {name: ["run"] * (f"{name}@run" in wanted) for name in Upstream.model_fields}

    upstreams = upstreams_of_evaluate(tmp_path, parameters)

    assert upstreams == wanted | {"voxelize", "import_vae", "encode", "stage1", "gate", "stage2"}
    assert load_settings(tmp_path / "params.yaml")
