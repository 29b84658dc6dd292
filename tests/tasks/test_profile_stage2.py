"""The profile of stage 2: every part is there, nothing is counted twice, no result is touched."""

import json
from pathlib import Path

import pytest

from tasks.profile_stage2 import PARTS, WHOLE, profile_stage2
from tasks.run import Settings, paths


@pytest.mark.usefixtures("small_project")
def test_the_parts_of_a_step(small_settings: Settings):
    times = profile_stage2(small_settings, steps=1, directory=Path("profile"))
    assert list(times.index) == [*PARTS, "rest", "step"]
    cpu = times.cpu_ms
    assert cpu[[*WHOLE, "rest"]].sum() == pytest.approx(cpu["step"])
    assert (cpu > 0).all()
    assert sum(cpu[f"vae.decoder.upsample.{level}"] for level in range(3)) < cpu["vae.decoder"]
    names = {event.get("name") for event in json.loads(Path("profile/trace.json").read_text())["traceEvents"]}
    assert names >= set(PARTS)
    assert not paths.TOKENIZER.exists()
    assert not (paths.METRICS / "stage2_history.tsv").exists()
    assert not paths.RESUME.exists()
