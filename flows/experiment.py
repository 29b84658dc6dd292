"""Other parameters for one run: set, run, kept as a DVC experiment, and the checkout left as it was."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.exceptions import InvalidArgumentError
from dvc.repo import Repo
from dvc.scm import NoSCM, SCMError, map_scm_exception
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml

from flows.graph import kept_by_git
from model.errors import InputError
from model.files import copy_whole, whole_directory, write_whole
from tasks.run import PARAMS_FILE, ParameterError, load_settings

SNAPSHOT = Path("artifacts/.scratch/before_overrides")  # what put_back() puts back, also after the flow was killed
OVERRIDDEN = "overridden.yaml"  # in there: params.yaml as the run has it
KEY = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*", re.ASCII)  # Hydra's grammar also has +key, ~key and key@package
CODE = {"voxelize.dask_scheduler"}  # a parameter that says whose code is run is for params.yaml, which is code, to set


@contextmanager
def overridden(params: Mapping[str, Any]) -> Iterator[None]:
    """Within the block params.yaml holds these values, by dotted key; without any, nothing is done.

    In the end params.yaml, dvc.lock, metrics and outputs are those of before, so that the next run starts from what is
    committed. Raises InputError, before anything is changed, for an unknown key, for a value that settings refuse, and
    where params.yaml or an output has changes that are not committed and would be lost.
    """
    put_back()
    if not params:
        yield
        return
    _refuse_without_identity()
    _refuse_edited_params()
    text = _with_overrides(params)
    _refuse_changed_outputs()
    _take_snapshot(text)
    try:
        write_whole(PARAMS_FILE, text)
        yield
    finally:
        put_back()


def save(name: str, stages: Sequence[str]) -> None:
    """Keep the checkout's parameters, and what these stages made of them, as a DVC experiment: `dvc exp apply NAME`."""
    with Repo() as repo:  # by name, because optional stages, which may never have run, are in the graph too
        repo.experiments.save(targets=stages, name=name, force=True)


def put_back() -> None:
    """The checkout as it was before the overrides of a run that ended, or that was killed; else nothing.

    Raises InputError where params.yaml was edited since a run was killed: those edits, and what was made with them, are
    not for us to undo.
    """
    if not SNAPSHOT.is_dir():
        return
    known = [(SNAPSHOT / name).read_text() for name in (PARAMS_FILE, OVERRIDDEN)]
    if not PARAMS_FILE.is_file() or PARAMS_FILE.read_text() not in known:
        raise InputError(
            f"a run with params was killed, and {PARAMS_FILE} was changed since; what was before that run is in "
            f"{SNAPSHOT}: take from it what you want, then remove that folder"
        )
    for path in map(Path, json.loads((SNAPSHOT / "files.json").read_text())):
        _replace(path, SNAPSHOT / path)
    with Repo() as repo:
        repo.checkout(force=True, allow_missing=True)
    shutil.rmtree(SNAPSHOT.rename(SNAPSHOT.with_name(f".{SNAPSHOT.name}.old")))  # half of one would pass for a whole


def _take_snapshot(overridden_params: str) -> None:
    files = [str(PARAMS_FILE), *kept_by_git()]
    with whole_directory(SNAPSHOT) as directory:
        for path in map(Path, files):
            _replace(directory / path, path)
        write_whole(directory / "files.json", json.dumps(files))
        write_whole(directory / OVERRIDDEN, overridden_params)


def _replace(target: Path, source: Path) -> None:
    """Make `target` what `source` is: a file, a folder, or nothing."""
    if target.is_dir() and not source.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        with whole_directory(target) as directory:
            shutil.copytree(source, directory, dirs_exist_ok=True)
    elif source.exists():
        copy_whole(source, target)
    else:
        target.unlink(missing_ok=True)


def _with_overrides(params: Mapping[str, Any]) -> str:
    """params.yaml with these values, checked."""
    with TemporaryDirectory() as scratch:
        copy = Path(shutil.copy(PARAMS_FILE, scratch))
        for key, value in params.items():
            _refuse_what_is_no_value(key, value)
            try:
                apply_overrides(copy, [f"{key}={json.dumps(value, ensure_ascii=False)}"])
            except InvalidArgumentError as error:
                reason = str(error.__cause__).strip().split("\n")[0]
                raise InputError(
                    f"params: {key}={value!r} can't be set ({reason}); {PARAMS_FILE} has the keys"
                ) from error
            if (became := _value_of(copy, key)) != value:  # Hydra's quoting is not JSON's
                raise InputError(f"params: {key}={value!r} would become {became!r}; set it in {PARAMS_FILE} instead")
        try:
            load_settings(copy)
        except ParameterError as error:
            raise InputError(f"params: {error}".replace(str(copy), str(PARAMS_FILE))) from error
        return copy.read_text()


def _refuse_what_is_no_value(key: str, value: Any) -> None:
    """Hydra would read more in it: a section as what takes the place of another, ${...} as what it looks up."""
    if not KEY.fullmatch(key):
        raise InputError(
            f"params: {key!r} is no key; expected one of {PARAMS_FILE} by its dotted name, as in stage2.lr"
        )
    if key in CODE:
        raise InputError(f"params: {key} is not for a run to set; set it in {PARAMS_FILE} and commit that")
    if isinstance(value, dict):
        raise InputError(
            f"params: {key} is a section; name its keys one by one, as in {key}.{next(iter(value), 'key')}"
        )
    if "${" in json.dumps(value):
        raise InputError(
            f"params: {key}={value!r} holds ${{, and nothing is looked up for a run; give the value itself"
        )


def _value_of(file: Path, key: str) -> Any:
    value = load_yaml(str(file))
    for part in key.split("."):
        value = value[part]
    return value


def _refuse_without_identity() -> None:
    """Before anything is trained: an experiment is a commit."""
    becomes = "params: a run with other values becomes an experiment, which is a commit"
    with Repo() as repo:
        if isinstance(repo.scm, NoSCM):
            raise InputError(f"{becomes}, and this is no git repository; git init, then commit what is here")
        try:
            with map_scm_exception():
                repo.scm.pygit2.committer  # noqa: B018 - what DVC will ask for
        except SCMError as error:
            raise InputError(
                f"{becomes}, and git does not know whose; git config user.name NAME, git config user.email ADDRESS"
            ) from error


def _refuse_edited_params() -> None:
    changes = subprocess.run(
        ["git", "status", "--porcelain", str(PARAMS_FILE)], check=True, capture_output=True, text=True
    )
    if changes.stdout.strip():
        raise InputError(
            f"{PARAMS_FILE} has changes that are not committed, and params would mix with them; "
            f"commit them, or git checkout {PARAMS_FILE}"
        )


def _refuse_changed_outputs() -> None:
    """What a stage did not make, or what `dvc commit` has not recorded yet, the way back would overwrite."""
    with Repo() as repo:
        changed = repo.data_status()["uncommitted"].get("modified")
    if changed:
        raise InputError(
            f"{', '.join(changed)}: not as dvc.lock has it, and it would be lost; record it with "
            ".venv/bin/dvc commit, or bring back the old with .venv/bin/dvc checkout --force"
        )
