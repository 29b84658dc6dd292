"""Where the time of stage 2's steps goes: `python -m tasks.training.profile_stage2 profile`, after `make repro`.

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

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from model.device import pick_device
from model.errors import InputError
from model.files import whole_file, write_whole
from tasks.data import ShapeBatch, training_batches
from tasks.joint_training import JointSteps, param_groups
from tasks.run import SDF, ParameterError, Settings, load_settings
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


def profile_stage2(settings: Settings, *, steps: int, directory: Path) -> dict[str, tuple[float, float]]:
    """Milliseconds a step on the CPU and the GPU, by part. Leaves the stage's results and saved state as they are."""
    params = settings.stage2.model_copy(
        update={"steps": WARMUP_STEPS + steps, "warmup_steps": 1, "log_every": steps, "save_every": steps}
    )
    device = pick_device()
    vqvae = start_of_stage2(settings.codebook).to(device)
    if params.recompute:
        vqvae.vae.recompute_activations()
    batches_from = training_batches(open_shards(SDF), params, device)
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

        resume = ResumePoint("profile_stage2", Path(scratch).name)
        history = History(Path(scratch) / "history.tsv")
        steps_of_stage2 = JointSteps(vqvae, settings)
        train(
            vqvae,
            param_groups(vqvae, params),
            steps_of_stage2.losses,
            labelled_batches,
            settings=params,
            resume=resume,
            history=history,
            after_step=steps_of_stage2.after,
            description="profile",
        )
        profiler.step()
        resume.clear()
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


def _milliseconds(events: Any, steps: int) -> dict[str, tuple[float, float]]:
    by_name = {event.key: event for event in events}
    total = [event for event in events if event.key.startswith(STEP)]
    times = {
        part: (by_name[part].cpu_time_total / 1000 / steps, by_name[part].device_time_total / 1000 / steps)
        for part in PARTS
        if part in by_name
    }
    whole = tuple(
        sum(getattr(event, kind) for event in total) / 1000 / steps for kind in ("cpu_time_total", "device_time_total")
    )
    known = [sum(times[part][i] for part in WHOLE if part in times) for i in range(2)]
    rest = (whole[0] - known[0], whole[1] - known[1])
    return times | {"rest": rest, "step": (whole[0], whole[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    try:
        times = profile_stage2(load_settings(), steps=arguments.steps, directory=arguments.directory)
    except (InputError, ParameterError) as error:
        sys.exit(f"profile_stage2: {error}")
    rows = [(PARTS.get(part, part), f"{cpu:.2f}", f"{gpu:.2f}") for part, (cpu, gpu) in times.items()]
    header = ("part", "cpu_ms", "gpu_ms")
    lines = ("\t".join(row) for row in [header, *((words.strip(), *ms) for words, *ms in rows)])
    write_whole(arguments.directory / "parts.tsv", "\n".join(lines) + "\n")
    for words, cpu, gpu in [header, *rows]:
        print(f"{words:<40} {cpu:>10} {gpu:>10}")


if __name__ == "__main__":
    main()
