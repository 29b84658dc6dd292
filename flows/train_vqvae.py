"""The flow train-vqvae: every stage that DVC finds out of date, watched, retried where that helps, stopped cleanly.

DVC owns the graph and decides what runs; `dvc repro` does the same without any of this. A stage is an entry of
dvc.yaml, and its code is tasks/STAGE.py; a new one changes nothing here. docs/operating.md says how to operate it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import sleep
from typing import Any

from prefect import Task, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, TaskRun
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.alerts import GATE_REFUSED, alert
from flows.experiment import overridden, save
from flows.graph import plan, push
from flows.local_server import bypass_proxies
from flows.run_page import ProgressBar, show_evaluation, show_stages, show_state
from flows.stage_process import GateRefusedError, StageError, StageResult, StageStoppedError, reproduce
from model.errors import InputError, hear_interrupts
from tasks.inputs import check_inputs, prepare_dvc
from tasks.run import AlreadyRunningError, only_one

STARTED_BY = os.getppid()
FLOW_RUN_ID = "PREFECT__FLOW_RUN_ID"  # in the environment where a worker started this process
WAIT_SECONDS = 2.0


def mendable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a retry can help: not for a refusal or a fault, which would only come again."""
    return isinstance(state.result(raise_on_failure=False), StageStoppedError)


@task(
    task_run_name="{stage}",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=mendable,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def bring_up_to_date(stage: str, force: bool, remote: bool) -> StageResult:
    logger, progress = get_run_logger(), ProgressBar()

    def show(line: str) -> None:
        (logger.error if line.startswith("ERROR") else logger.info)(line)
        progress.look_at(line)

    return reproduce(stage, force=force, remote=remote, on_line=show, orphaned=_orphaned)


@flow(name="train-vqvae", on_failure=[alert], on_crashed=[alert], persist_result=False)
def train_vqvae(
    targets: list[str] | None = None, force: bool = False, params: dict[str, Any] | None = None, remote: bool = False
) -> State[Any]:
    """Bring the tokenizer up to date.

    Args:
        targets: stages, with all that they need; none: the whole of dvc.yaml.
        force: run these stages also where nothing changed.
        params: other values for this run, by dotted key, as in {"stage2.lr": 0.0002}; the result becomes a DVC
            experiment with this run's name, and the checkout is left as it was.
        remote: pull what is missing from the default DVC remote, and push what was made.
    """
    planned: list[str] = []
    results: list[StageResult] = []
    failure: Exception | None = None
    try:
        prepare_dvc()
        with _alone_in_this_checkout(), overridden(params or {}):
            planned = plan(targets or [], remote=remote)
            if "voxelize" in planned:
                check_inputs()
            for stage in planned:
                results.append(bring_up_to_date(stage, force, remote))  # noqa: PERF401 (those before a failure count)
            if params:
                save(_experiment_name(), planned)
            if "evaluate" in planned:
                show_evaluation()
            if remote:
                push()
    except (AlreadyRunningError, InputError, StageError) as error:
        failure = error
    show_stages(results, planned, str(failure) if failure else None)
    if failure:
        return Failed(name=GATE_REFUSED if isinstance(failure, GateRefusedError) else "Failed", message=str(failure))
    ran = [result.stage for result in results if result.outcome == "ran"]
    return Completed(message=f"ran {', '.join(ran)}" if ran else "everything was up to date")


@contextmanager
def _alone_in_this_checkout() -> Iterator[None]:
    """A run of the deployment waits for the one before it; one that was started by hand is refused.

    The deployment's limit is not enough: Prefect's server (3.8.8) let a second run begin four minutes after one was
    cancelled. By its source, it frees a cancelled run's place at once and again when the run's lease would have ended.
    """
    with ExitStack() as lock:
        said = False
        while True:
            try:
                lock.enter_context(only_one("train-vqvae"))
                break
            except AlreadyRunningError as error:
                if FLOW_RUN_ID not in os.environ or _orphaned():
                    raise
                if not said:
                    get_run_logger().info(f"{error}; this run waits")
                    show_state("Waiting", f"for the run before it: {error}")
                    said = True
                sleep(WAIT_SECONDS)
        if said:
            show_state("Running")
        yield


def _experiment_name() -> str:
    """The flow run's name with only what a git ref may hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", str(flow_run.get_name())).strip("-")


def _orphaned() -> bool:
    """Whether the worker that started this process is gone; never true for a flow started by hand."""
    return FLOW_RUN_ID in os.environ and os.getppid() != STARTED_BY


if __name__ == "__main__":
    hear_interrupts()
    bypass_proxies()
    train_vqvae()
