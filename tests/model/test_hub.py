"""Without a network: what the hub's cache holds works, all else is an error that says so."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from model.checkpoint import load_vae, save_vae
from model.errors import InputError
from model.hub import is_hub_id, local_path
from model.vae import SparseSDFVAE, VAEConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put_vae(cache: Path, folder: str) -> SparseSDFVAE:
    """As huggingface_hub would have left it."""
    repository = cache / "models--someone--shapes"
    vae = SparseSDFVAE(VAEConfig(64, 1, 4))
    save_vae(vae, repository / "snapshots" / COMMIT / folder)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return vae


@pytest.mark.parametrize(
    "source",
    [
        "hf://someone/shapes/vaes/small/model.safetensors",
        "hf://someone/shapes@main/vaes/small/model.safetensors",
        f"hf://someone/shapes@{COMMIT}/vaes/small/model.safetensors",
        "https://huggingface.co/someone/shapes/blob/main/vaes/small/model.safetensors",
        "hf://someone/shapes/vaes/small",
        "hf://someone/shapes/vaes/v1.5",
    ],
)
def test_what_is_in_the_cache_needs_no_network(cache: Path, source: str):
    vae = put_vae(cache, "vaes/v1.5" if source.endswith("v1.5") else "vaes/small")
    assert load_vae(source).decoder.input_layer.weight.equal(vae.decoder.input_layer.weight)


def test_a_repository_may_be_the_folder(cache: Path):
    put_vae(cache, ".")
    assert (local_path("hf://someone/shapes") / "model.safetensors").is_file()


def test_a_folder_that_has_no_weights_is_named(cache: Path):
    put_vae(cache, "vaes/small")
    with pytest.raises(InputError, match="hf://someone/shapes/vaes/other: no folder with files of weights"):
        local_path("hf://someone/shapes/vaes/other")


def test_a_folder_is_asked_for_weights_of_every_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    asked: list[str] = []

    def snapshot_download(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.extend(allow_patterns)
        (tmp_path / "vae").mkdir()
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    local_path("hf://someone/shapes/vae")
    assert {"vae/*.ckpt", "vae/*.safetensors", "vae/*.json"} <= set(asked)


@pytest.mark.parametrize("path", ["vae/model.safetensors", "vae"])
def test_without_a_network_the_error_says_what_to_do(cache: Path, path: str):
    source = f"hf://someone/other/{path}"
    with pytest.raises(InputError) as raised:
        local_path(source)
    message = str(raised.value)
    assert message.startswith(f"{source}: neither in the hub's cache nor to be fetched (")
    assert "name the file's path here" in message
    assert "\n" not in message


@pytest.mark.parametrize("source", ["hf://shapes", "hf://", "hf://a b/c/d.ckpt", "https://huggingface.co/settings"])
def test_what_is_no_id(cache: Path, source: str):
    with pytest.raises(InputError, match=r"not an id of the hub .*expected hf://owner/name\[@revision\]/path"):
        local_path(source)


def test_paths_are_left_alone(tmp_path: Path):
    assert local_path(tmp_path) == tmp_path
    assert local_path("pretrained/small_vae.safetensors") == Path("pretrained/small_vae.safetensors")
    assert not is_hub_id("hf/owner/name")
