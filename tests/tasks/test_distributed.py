"""Stages in two processes: the same as in one, one end, and no half of it survives the other."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from model.errors import InputError
from tasks import encode
from tasks.data import latents_files, read_vectors
from tasks.data.dataset import TrainingView, View, share_of
from tasks.run import Settings, load_settings, paths, run_stage
from tasks.run.processes import LIMIT
from tasks.stage2 import stage2
from tests.processes import in_two_processes, start
from tests.tasks.conftest import forget_training

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
HISTORY = paths.METRICS / "stage2_history.tsv"
ENCODE = """
from tasks import encode
encode.VIEWS_PER_FILE = 3
encode.run_stage("encode", encode.encode)
"""
# The first process, once it has saved step 5, has its launcher told to stop, and goes on when it is told so itself.
STOPPED = """
import os, signal, time
from model.distributed import rank
from tasks.run.processes import LAUNCHER
from tasks.stage2 import run_stage, stage2
from tasks.training import ResumePoint
save = ResumePoint.save
def save_and_have_it_stopped(self, state):
    save(self, state)
    if rank() == 0 and state["step"] == 5:
        heard, handler = [], signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *received: heard.append(handler(*received)))
        os.kill(int(os.environ[LAUNCHER]), signal.SIGTERM)
        while not heard:
            time.sleep(0.01)
ResumePoint.save = save_and_have_it_stopped
run_stage("stage2", stage2)
"""


def write_params(settings: Settings, **stage2: object) -> Settings:
    """What a stage that starts here reads."""
    values = settings.model_dump(mode="json")
    values["stage2"] |= {"batch_voxels": 24000, "log_every": 1, "validate_every": 20} | stage2
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return load_settings()


def train_in_two(settings: Settings) -> None:
    in_two_processes(lambda: stage2(settings), ["-m", "tasks.stage2"])


def result() -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
    return pd.read_csv(HISTORY, sep="\t").filter(regex="^(?!seconds)"), load_file(paths.STAGE2 / "model.safetensors")


def views(sizes: Sequence[int]) -> tuple[list[TrainingView], dict[str, int]]:
    names = [f"shape{i}" for i in range(len(sizes))]
    return [TrainingView(View(name, 0), 0) for name in names], dict(zip(names, sizes, strict=True))


def test_ranks_share_a_batch_by_voxels():
    batch, sizes = views([10, 70, 40, 30, 10])
    shares = [share_of(batch, sizes, rank=rank, num_ranks=2) for rank in range(2)]
    assert sorted(view for share in shares for view in share) == sorted(batch)
    assert [sum(sizes[view.view.name] for view in share) for share in shares] == [80, 80]
    assert share_of(batch, sizes, rank=0, num_ranks=1) != []


@pytest.mark.usefixtures("small_project")
def test_two_processes_encode_to_the_bit_what_one_does(small_settings: Settings, monkeypatch: pytest.MonkeyPatch):
    write_params(small_settings)
    monkeypatch.setattr(encode, "VIEWS_PER_FILE", 3)
    encode.encode(small_settings)
    alone = latents()
    of_train, of_val = ([path.name for path in latents_files(paths.LATENTS, split)] for split in ("train", "val"))
    assert (len(of_train), len(of_val)) == (4, 2)
    assert [*alone] == [*of_train, *of_val]

    in_two_processes(lambda: encode.encode(small_settings), ["-c", ENCODE])
    assert latents() == alone

    (paths.LATENTS / of_train[2]).unlink()
    with pytest.raises(InputError, match=r"train-00002-of-00004\.parquet does not exist; run dvc repro -f encode"):
        read_vectors(paths.LATENTS, "train", max_per_view=None, seed=0)


def latents() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(paths.LATENTS.iterdir())}


@pytest.mark.usefixtures("small_project")
def test_two_processes_train_as_one_does(small_settings: Settings):
    """Three shapes a batch, so that the shares differ in shapes and voxels; float32 sums are in another order.

    Nothing is revived: which vector a dead code moves onto is drawn by the order of vectors, which shares change.
    """
    codebook = small_settings.codebook.model_copy(update={"revive_below": 0.0})
    settings = write_params(small_settings.model_copy(update={"codebook": codebook}), steps=10)
    stage2(settings)
    history, weights = result()
    forget_training()
    train_in_two(settings)
    shared_history, shared_weights = result()
    assert list(history.step) == list(range(1, 11))
    losses = ["loss", "recon_loss", "outside_loss", "vq_loss", "commitment_loss", "sign_errors", "perplexity"]
    pd.testing.assert_frame_equal(history[losses], shared_history[losses], rtol=1e-5, atol=1e-5)
    for key, value in weights.items():
        torch.testing.assert_close(
            shared_weights[key], value, rtol=0, atol=1e-3
        )  # Adam makes steps of its rate, 1e-3, of gradients that are rounding


@pytest.mark.usefixtures("small_project")
def test_two_processes_stop_as_one_and_the_run_resumes_to_the_bit(
    small_settings: Settings, capsys: pytest.CaptureFixture[str]
):
    """As if two that had another launcher had not been disturbed."""
    settings = write_params(small_settings, steps=12)
    train_in_two(settings)
    history, weights = result()
    metrics = json.loads((paths.METRICS / "stage2.json").read_text())
    forget_training()

    run = start(["-c", STOPPED], **{LIMIT: "2"})
    output = run.communicate()[0]
    assert run.returncode == 130, output
    assert output.count("stage2: interrupted; ") == 1
    assert "Traceback" not in output

    capsys.readouterr()
    train_in_two(settings)
    assert "going on from step 6" in capsys.readouterr().err
    resumed_history, resumed_weights = result()
    pd.testing.assert_frame_equal(resumed_history, history)
    assert all(torch.equal(resumed_weights[key], value) for key, value in weights.items())
    assert json.loads((paths.METRICS / "stage2.json").read_text()) == metrics


@pytest.mark.usefixtures("small_project")
def test_torchrun_is_refused_more_processes_than_shapes_and_the_stage_itself_starts_no_more(
    small_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    write_params(small_settings, batch_voxels=16000, steps=5)
    run = start([*TORCHRUN, "-m", "tasks.stage2"])
    output = run.communicate()[0]
    assert run.returncode != 0
    assert "stage2: batch_voxels is 16000 but 2 processes share a batch" in output

    monkeypatch.setenv(LIMIT, "2")
    run_stage("stage2", stage2)
    assert "1 of 2 processes work on stage2: a batch may have no more to share" in capsys.readouterr().err
    assert paths.STAGE2.is_dir()
