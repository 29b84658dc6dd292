"""Files are written by model/files.py: whole, synced, renamed. Every other write is looked for here."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.files import whole_directory, whole_file, write_whole

ROOT = Path(__file__).parents[1]

# Whatever is called so writes, renames or copies a file, if it is given a path.
WRITERS = {
    *("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "rename"),
    *("copy2", "copyfile", "copytree", "move", "make_archive"),
    *("to_parquet", "to_csv", "to_json", "to_pickle", "ParquetWriter", "write_feather"),
    *("save_file", "savez", "savez_compressed", "savetxt", "tofile", "savefig", "export_chrome_trace", "extractall"),
}
OF_MODULES = {
    ("os", "replace"),
    ("os", "open"),
    ("os", "link"),
    ("json", "dump"),
    ("pickle", "dump"),
    ("torch", "save"),
}
OF_MODULES |= {("np", "save"), ("pq", "write_table"), ("shutil", "copy")}

ALLOWED = {
    "model/files.py": "is the room",
    "model/tokens/dataset.py": "a journal, which a killed process leaves on purpose",
    "model/jobs/fanout.py": "markers of attempts, which a killed process leaves on purpose",
    "model/report/gallery.py": "meshes of one run in its own temporary folder",
    "model/evaluation/reconstructions.py": "/proc",
    "tasks/fetch_meshes.py": "pip's requirements in a temporary folder",
    "tasks/run/stage.py": "a lock, of which the file itself is the point",
    "flows/credentials.py": "a secret: mode 600 from the start, and never over another process's",
    "flows/experiment.py": "a copy of params.yaml in a temporary folder, and the checkout put back as it was",
    "flows/repro.py": "its answer to the process that started it, in that one's temporary folder",
}
# Into the path that whole_file gave, or into memory.
BY_THE_ROOM = {
    "model/checkpoint.py": {"torch.save"},
    "model/plots/codebook.py": {"to_csv"},
    "model/plots/curves.py": {"savefig", "to_csv"},
    "model/tables.py": {"ParquetWriter", "pq.write_table"},
    "model/tensors.py": {"save_file"},
    "model/tokens/files.py": {"open"},
    "model/tokens/tokens.py": {"ParquetWriter", "open", "savez_compressed"},
    "tasks/profile_stage2.py": {"export_chrome_trace", "to_csv"},
    "tasks/training/loop.py": {"to_csv"},
    "tasks/training/resume.py": {"open", "torch.save"},
}


def direct_writes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Attribute(ast.Name(module), name) if (module, name) in OF_MODULES:
                yield f"{module}.{name}"
            case ast.Attribute(_, "open") | ast.Name("open") if opens_to_write(node):
                yield "open"
            case ast.Attribute(_, name) | ast.Name(name) if name in WRITERS:
                yield name


def opens_to_write(call: ast.Call) -> bool:
    modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    modes += [k.value.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    return any(isinstance(mode, str) and len(mode) <= 3 and set(mode) & set("wax+") for mode in modes)


def test_only_one_room_writes_files():
    found = {}
    for folder in ("model", "tasks", "flows"):
        for file in (ROOT / folder).rglob("*.py"):
            writes = set(direct_writes(ast.parse(file.read_text())))
            if writes:
                found[str(file.relative_to(ROOT))] = writes
    assert found.keys() >= ALLOWED.keys(), "an exception that is none any more"
    assert {file: writes for file, writes in found.items() if file not in ALLOWED} == BY_THE_ROOM


def test_a_direct_write_is_seen():
    text = 'Path("x").write_text("y"); open("x", mode="a"); path.open("wb"); np.save(path, x)'
    harmless = 'open("w.txt"); text.replace("a", "w"); array.copy()'
    assert list(direct_writes(ast.parse(f"{text}; {harmless}"))) == ["write_text", "open", "open", "np.save"]


# --- the room --------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is synced and what gets its name, as it happens."""
    seen: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        sync(handle)
        seen.append(("synced", Path(f"/proc/self/fd/{handle}").readlink().name))

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append(("named", target.name))

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    return seen


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list):
    write_whole(tmp_path / "new" / "x.json", "{}")
    assert steps == [("synced", f".x.json.{os.getpid()}.partial"), ("named", "x.json"), ("synced", "new")]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list):
    (tmp_path / "out").mkdir()
    with whole_directory(tmp_path / "out") as directory:
        (directory / "x").write_text("x")
    names = [("synced", "x"), ("synced", ".out.partial"), ("named", ".out.old"), ("named", "out")]
    assert steps == [*names, ("synced", tmp_path.name)]
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "x"]


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path):
    write_whole(tmp_path / "x", "before")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x", previous=tmp_path / "y") as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), whole_directory(tmp_path / "out") as directory:
        (directory / "x").write_text("half")
        1 / 0  # noqa: B018
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("x", "before")]
