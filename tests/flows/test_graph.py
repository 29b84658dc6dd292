"""The plan is DVC's own."""

import re
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.graph import kept_by_git, plan, push
from model.errors import InputError
from tests.flows.conftest import run

pytestmark = pytest.mark.usefixtures("checkout")


@pytest.mark.parametrize("targets", [[], ["encode"], ["stage2", "voxelize"]])
def test_stages_are_those_of_dvc_repro_each_after_what_it_needs(targets: list[str]):
    stages = plan(targets)
    output = run("dvc", "repro", "--dry", "--force", *targets)
    assert sorted(stages) == sorted(re.findall(r"Running stage '(.*)':", output))
    with Repo() as repo:
        needs = {stage.addressing: {need.addressing for need in repo.index.graph[stage]} for stage in repo.index.stages}
    assert all(needs[stage] <= set(stages[:i]) for i, stage in enumerate(stages))


def test_an_optional_stage_is_part_of_it_only_where_its_output_is_used():
    assert "tasks/upstream/dvc.yaml:fetch_meshes@run" in plan([])
    assert not any("pretrain_vae" in stage for stage in plan([]))


def test_a_target_that_is_no_stage_is_refused_with_the_names_of_those_that_are():
    with pytest.raises(InputError, match=r"\['stage3'\] holds what is no stage; the stages are .*stage1, stage2"):
        plan(["stage3"])


def test_a_remote_that_is_to_be_pushed_to_has_to_be_there():
    with pytest.raises(InputError, match=r"no default DVC remote; \.venv/bin/dvc remote add --default NAME URL"):
        plan([], remote=True)


def test_a_push_that_fails_says_that_nothing_is_lost(checkout: Path):
    with Repo() as repo, repo.config.edit("repo") as config:
        config["core"] = {"remote": "store"}
        config["remote"] = {"store": {"url": str(checkout / "params.yaml" / "store")}}
    with pytest.raises(InputError, match=r"could not be pushed \(.*Not a directory.*\); .*: \.venv/bin/dvc push"):
        push()


def test_git_keeps_locks_metrics_and_plots():
    files = set(kept_by_git())
    assert {"dvc.lock", "metrics/evaluate.json", "metrics/plots", "metrics/stage1_history.tsv"} <= files
    tracked = set(run("git", "ls-files").split())
    written = {file for file in tracked if file.startswith("metrics/") or Path(file).suffix == ".lock"}
    assert all({file, *(str(folder) for folder in Path(file).parents)} & files for file in written)
