"""What is to run, asked of DVC: dvc.yaml is the only place where stages and their order are declared."""

from collections.abc import Sequence

from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage.exceptions import StageFileDoesNotExistError, StageNotFound

from model.errors import InputError, first_line


def plan(targets: Sequence[str], *, remote: bool = False) -> list[str]:
    """The stages that `dvc repro TARGETS` would look at, by address, each after those that it needs.

    No targets stand for dvc.yaml. Raises InputError for one that is no stage, and where a default remote is needed and
    there is none: before anything is trained.
    """
    with Repo() as repo:
        if remote and not repo.config["core"].get("remote"):
            raise InputError("remote: there is no default DVC remote; .venv/bin/dvc remote add --default NAME URL")
        graph = repo.index.graph
        try:
            wanted = collect_stages(repo, targets or ["dvc.yaml"])
        except (StageNotFound, StageFileDoesNotExistError) as error:
            known = ", ".join(sorted(stage.addressing for stage in graph))
            raise InputError(f"targets: {list(targets)} holds what is no stage; the stages are {known}") from error
        return [stage.addressing for stage in plan_repro(get_active_graph(graph), wanted)]


def kept_by_git() -> list[str]:
    """Files and folders that a run may change and git keeps: dvc.lock, metrics, plots; relative to the root."""
    with Repo() as repo:
        locks = {stage.dvcfile.relpath.removesuffix(".yaml") + ".lock" for stage in repo.index.stages}
        outs = {str(out) for out in repo.index.outs if not out.use_cache}
    return sorted(locks | outs)


def push() -> None:
    """What was made, to the default DVC remote. Raises InputError where that fails: nothing is lost."""
    with Repo() as repo:
        try:
            repo.push()
        except Exception as error:
            told = f"what was made is in DVC's cache here, and could not be pushed ({first_line(error)})"
            raise InputError(f"{told}; when the remote answers: .venv/bin/dvc push") from error
