"""What a run shows on its page: progress while a stage works, then the table of stages, figures and pictures."""

import base64
import json
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.runtime import flow_run
from prefect.states import Running

from flows.stage_process import PROGRESS, StageResult
from tasks.run import paths

FIGURES = ("cd_l1", "fscore_0.01", "normal_consistency", "volume_iou", "surface_iou", "spurious_area")
PICTURES = {
    "shapes": "Test shapes: truth, VAE, after stage 1, after stage 2",
    "loss_curves": "Loss curves of stage 1 and stage 2",
}


class ProgressBar:
    """A stage's own progress lines as a bar on the page; nothing is shown for a stage that writes none."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}

    def look_at(self, line: str) -> None:
        match = PROGRESS.match(line)
        if not match:
            return
        percent = 100 * int(match["done"]) / max(int(match["total"]), 1)
        key = f"progress-{_key(match['stage'])}"
        if key in self._artifacts:
            update_progress_artifact(self._artifacts[key], percent, description=line)
        else:
            self._artifacts[key] = cast(UUID, create_progress_artifact(percent, key=key, description=line))


def show_state(name: str, message: str | None = None) -> None:
    """The run's state under another name; it is Running all the same, keeps its place and can be cancelled."""
    with get_client(sync_client=True) as client:
        state: State[None] = Running(name=name, message=message)
        client.set_flow_run_state(str(flow_run.get_id()), state)


def show_stages(results: list[StageResult], planned: list[str], failure: str | None) -> None:
    """A row for each stage of the plan, also for those that the run did not come to."""
    table = [{"stage": r.stage, "outcome": r.outcome, "seconds": round(r.seconds, 1)} for r in results]
    for i, stage in enumerate(planned[len(results) :]):
        table.append({"stage": stage, "outcome": "failed" if failure and i == 0 else "not run", "seconds": None})
    create_table_artifact(table, key="stages", description=failure or "Every stage is up to date")


def show_evaluation() -> None:
    """The figures of metrics/evaluate.json, where the report is, and its pictures."""
    evaluation = paths.METRICS / "evaluate.json"
    if not evaluation.is_file():
        return
    create_markdown_artifact(_figures(json.loads(evaluation.read_text())), key="evaluation")
    for name, description in PICTURES.items():
        picture = paths.PLOTS / f"{name}.png"
        if picture.is_file():
            content = base64.b64encode(picture.read_bytes()).decode()
            create_image_artifact(f"data:image/png;base64,{content}", key=_key(name), description=description)


def _figures(evaluation: dict[str, dict[str, Any]]) -> str:
    """The rows of an evaluation as a Markdown table."""
    from model.evaluation import REPORT  # both bring torch, Warp and matplotlib, which take seconds
    from model.report import ROW_TITLES, figures_of

    measured = {title: evaluation[row] for row, title in ROW_TITLES.items() if row in evaluation}
    known = {column for values in measured.values() for column in values}
    figures = figures_of([column for column in FIGURES if column in known])
    rows = [
        [title, *(figure.show(values.get(figure.column)) for figure in figures), str(values["failures"])]
        for title, values in measured.items()
    ]
    head = ["row", *(figure.label for figure in figures), "failed"]
    lines = [head, ["---"] * len(head), *rows]
    report = (paths.EVALUATION / REPORT).resolve()
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nEvery shape, to turn in 3D: [{report.name}]({report.as_uri()}), on the machine that ran this.\n"


def _key(name: str) -> str:
    """As Prefect wants it: lower case and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
