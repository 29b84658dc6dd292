"""params.yaml is checked as a whole, before anything else happens, and the message names the key by its full path."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tasks.run import ParameterError, Settings, load_settings

ROOT = Path(__file__).parents[3]
SMALL = ROOT / "params.yaml"
PUBLISHED = ROOT / "presets/published.yaml"
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))
OF_THE_TOKENIZER = ROOT / "pretrained/tokenizer_128/params.yaml"  # what the shipped one was trained with

Parameters = dict[str, dict[str, Any]]


@pytest.fixture
def message_after(tmp_path: Path) -> Callable[[Callable[[Parameters], object]], str]:
    """The message that a change to the shipped parameters ends in."""

    def message(change: Callable[[Parameters], object]) -> str:
        parameters = yaml.safe_load(SMALL.read_text())
        change(parameters)
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(parameters))
        with pytest.raises(ParameterError) as caught:
            load_settings(file)
        return str(caught.value)

    return message


def seconds_of_children() -> float:
    """Processor seconds, which do not depend on what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def keys(parameters: Parameters) -> dict[str, list[str]]:
    return {section: list(values) if isinstance(values, dict) else [] for section, values in parameters.items()}


@pytest.mark.parametrize(
    "file", [SMALL, *PRESETS, OF_THE_TOKENIZER], ids=lambda file: f"{file.parent.name}/{file.stem}"
)
def test_shipped_settings_load(file: Path):
    assert load_settings(file).codebook.dim == "auto"


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_presets_have_the_same_keys_in_the_same_order(file: Path):
    assert keys(yaml.safe_load(file.read_text())) == keys(yaml.safe_load(SMALL.read_text()))


def test_published_setting_is_the_published_one():
    settings = load_settings(PUBLISHED)
    assert (settings.voxelize.resolution, settings.codebook.num_codes) == (512, 8192)
    vae = settings.pretrain_vae
    assert (vae.model_channels, vae.num_blocks, vae.latent_channels) == (512, 4, 64)


def test_misspelt_key(message_after):
    message = message_after(lambda p: p["stage2"].update(learning_rate=0.1))
    assert "stage2.learning_rate" in message
    assert "unknown key" in message


def test_misspelt_section(message_after):
    message = message_after(lambda p: p.update(stage3={}))
    assert "stage3: unknown key" in message


def test_missing_key(message_after):
    message = message_after(lambda p: p["codebook"].pop("num_codes"))
    assert "codebook.num_codes: missing" in message


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("stage1", "steps", "many"),
        ("stage1", "steps", 0),
        ("stage2", "lr", -0.1),
        ("stage2", "lr", float("nan")),
        ("stage2", "recon", "l3"),
        ("gate", "min_usage", 1.5),
        ("voxelize", "resolution", 100),  # not a multiple of 8
        ("evaluate", "fscore_thresholds", []),
        ("upstream", "twin", "run"),
        ("upstream", "fetch_vae", ["runs"]),
        ("codebook", "num_codes", [1024, 1]),  # one of several kinds: one sentence all the same
        ("codebook", "dim", 0),
        ("stage1", "seed", 2**64),  # torch's generators take less
    ],
)
def test_value_that_no_stage_could_use(message_after, section: str, key: str, value: object):
    message = message_after(lambda p: p[section].update({key: value}))
    assert f"params.yaml: {section}.{key}: got {value!r}; " in message
    assert message.count("params.yaml") == 1


def test_contradiction_within_a_section(message_after):
    message = message_after(lambda p: p["voxelize"].update(val_share=0.5, test_share=0.5))
    assert "voxelize: val_share 0.5 and test_share 0.5 leave nothing to train on" in message


def test_contradiction_between_sections(message_after):
    def change(parameters: Parameters) -> None:
        parameters["upstream"]["pretrain_vae"] = ["run"]
        parameters["import_vae"]["checkpoint"] = "artifacts/pretrain_vae/vae.safetensors"
        parameters["pretrain_vae"]["latent_channels"] = 16
        parameters["codebook"]["dim"] = 64

    message = message_after(change)
    assert "codebook.dim is 64 but pretrain_vae.latent_channels is 16" in message


def test_what_a_stage_makes_needs_that_stage(message_after):
    message = message_after(lambda p: p["import_vae"].update(checkpoint="artifacts/pretrain_vae"))
    assert "set upstream.pretrain_vae: [run]" in message


def test_weights_on_the_hub_are_fetched_by_a_stage(message_after):
    message = message_after(lambda p: p["import_vae"].update(checkpoint="hf://owner/name/file.ckpt"))
    assert "set it to artifacts/fetch_vae, upstream.fetch_vae to [run] and fetch_vae.source to their address" in message


def test_an_old_file_is_told_what_changed(message_after):
    def change(parameters: Parameters) -> None:
        del parameters["version"]
        parameters["codebook"]["size"] = parameters["codebook"].pop("num_codes")

    message = message_after(change)
    assert "version 1" in message
    assert "codebook.size is codebook.num_codes" in message


def test_an_old_key_is_told_its_new_name(message_after):
    message = message_after(lambda p: p["codebook"].update(size=p["codebook"].pop("num_codes")))
    assert "codebook.size: is called codebook.num_codes now" in message


def test_every_fault_is_named_at_once(message_after):
    def change(parameters: Parameters) -> None:
        parameters["gate"]["min_use"] = 0.9
        del parameters["stage1"]["seed"]

    message = message_after(change)
    assert "gate.min_use" in message
    assert "stage1.seed" in message


def test_message_is_one_line(message_after):
    assert "\n" not in message_after(lambda p: p["stage2"].update(recon="l3", typo=1))


@pytest.mark.parametrize("text", ["", "- a list", "just text", "stage1: 3"])
def test_file_of_another_shape(tmp_path: Path, text: str):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(ParameterError, match=r"params\.yaml"):
        load_settings(file)


@pytest.mark.parametrize("content", [b"stage1: [1, 2\n", "# für alle\nversion: 2\n".encode("latin-1")])
def test_file_that_is_no_yaml(tmp_path: Path, content: bytes):
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(ParameterError, match="not valid YAML"):
        load_settings(file)


def test_missing_file(tmp_path: Path):
    with pytest.raises(ParameterError, match="does not exist"):
        load_settings(tmp_path / "params.yaml")


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        load_settings(SMALL).stage1.steps = 1


def test_settings_hold_no_default():
    """params.yaml is the only place with a value."""
    sections = {name: field.annotation for name, field in Settings.model_fields.items() if name != "version"}
    fields = [f"{name}.{key}" for name, section in sections.items() for key, field in section.model_fields.items()
              if not field.is_required()]  # fmt: skip
    assert fields == []


def test_a_typo_is_found_within_a_second_and_before_torch_is_imported(tmp_path: Path):
    """What decides whether a run may start must cost nothing: imports included, in a process of its own."""
    (tmp_path / "params.yaml").write_text(SMALL.read_text().replace("kmeans_iterations", "kmeans_iteration"))
    program = """
import sys
from tasks.run import (ParameterError, load_settings)
try:
    load_settings()
except ParameterError as error:
    print(error)
print("torch" in sys.modules)
"""
    before = seconds_of_children()
    environment = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert "stage1.kmeans_iteration: unknown key" in done.stdout
    assert seconds_of_children() - before < 1
