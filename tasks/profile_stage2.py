"""Where the time of stage 2's steps goes: `python -m tasks.profile_stage2 profile`, after `make repro`.

Writes trace.json, for https://ui.perfetto.dev or chrome://tracing, and parts.tsv: milliseconds a step of each part of
the network's forward pass, of loading and of the optimizer; what is left of the step is mostly the backward pass.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from model.device import pick_device
from model.errors import InputError
from model.files import whole_file, write_whole
from tasks.data import ShapeBatch, training_batches
from tasks.joint_training import JointSteps, param_groups
from tasks.run import Settings, load_settings, paths
from tasks.shards import open_shards
from tasks.stage2 import start_of_stage2
from tasks.training import History, ResumePoint, train

WARMUP_STEPS = 3
STEP = "ProfilerStep"
PARTS = {
    "data": "loading, and planning the decode",
    "vae.encoder": "encoder",
    "quantizer": "quantizer",
    "vae.decoder": "decoder",
    "vae.decoder.upsample.0": "  to twice the latents' resolution",
    "vae.decoder.upsample.1": "  to four times",
    "vae.decoder.upsample.2": "  to eight times",
    "Optimizer.step#AdamW.step": "optimizer",
}
WHOLE = [part for part, words in PARTS.items() if not words.startswith(" ")]


def profile_stage2(settings: Settings, *, steps: int, directory: Path) -> pd.DataFrame:
    """Milliseconds a step on the CPU and the GPU, by part. Leaves the stage's results and saved state as they are."""
    params = settings.stage2.model_copy(
        update={"steps": WARMUP_STEPS + steps, "warmup_steps": 1, "log_every": steps, "save_every": steps}
    )
    device = pick_device()
    vqvae = start_of_stage2(settings.codebook).to(device)
    if params.recompute:
        vqvae.vae.recompute_activations()
    batches_from = training_batches(open_shards(paths.SDF), params, device)
    _label(vqvae)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    plan = schedule(wait=0, warmup=WARMUP_STEPS, active=steps, repeat=1)
    with tempfile.TemporaryDirectory() as scratch, profile(activities=activities, schedule=plan) as profiler:

        def labelled_batches(start: int) -> Iterator[ShapeBatch]:
            batches = batches_from(start)
            while True:
                with record_function("data"):
                    batch = next(batches)
                    batch.target.make_ahead()
                yield batch
                profiler.step()

        resume = ResumePoint("profile_stage2", scratch)  # as an absolute path it is the state's own place
        history = History(Path(scratch) / "history.tsv")
        steps_of_stage2 = JointSteps(vqvae, settings)
        train(
            vqvae,
            param_groups(vqvae, params),
            steps_of_stage2.losses,
            labelled_batches,
            settings=params,
            section="stage2",
            resume=resume,
            history=history,
            after_step=steps_of_stage2.after,
        )
        profiler.step()
    with whole_file(directory / "trace.json") as partial:
        profiler.export_chrome_trace(str(partial))
    return _milliseconds(profiler.key_averages(), steps)


def _label(vqvae: nn.Module) -> None:
    """Let the profiler know when each part of the network works."""
    for name, module in vqvae.named_modules():
        if name in PARTS:
            stack = ExitStack()
            module.register_forward_pre_hook(
                lambda *_, name=name, stack=stack: stack.enter_context(record_function(name)) and None
            )
            module.register_forward_hook(lambda *_, stack=stack: stack.close())


def _milliseconds(events: Any, steps: int) -> pd.DataFrame:
    times = {event.key: (event.cpu_time_total, event.device_time_total) for event in events}
    table = pd.DataFrame.from_dict(times, orient="index", columns=["cpu_ms", "gpu_ms"]) / 1000 / steps
    parts = table.reindex([part for part in PARTS if part in times])
    step = table[table.index.str.startswith(STEP)].sum()
    parts.loc["rest"] = step - parts.loc[parts.index.intersection(WHOLE)].sum()
    parts.loc["step"] = step
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    try:
        table = profile_stage2(load_settings(), steps=arguments.steps, directory=arguments.directory)
    except InputError as error:
        sys.exit(f"profile_stage2: {error}")
    table.index = pd.Index([PARTS.get(part, part) for part in table.index], name="part")
    print(table.to_string(float_format="%.2f"))
    table.index = table.index.str.strip()
    write_whole(arguments.directory / "parts.tsv", table.to_csv(sep="\t", float_format="%.2f", lineterminator="\n"))


if __name__ == "__main__":
    main()
