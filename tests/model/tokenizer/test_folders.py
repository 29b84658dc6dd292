"""The folder of a tokenizer: what it holds, and that a hostile or damaged one is refused in one sentence."""

import json
import math
import shutil
import time
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from model.checkpoint import save_vae
from model.errors import InputError
from model.tensors import write_tensors
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens
from model.vqvae import Config
from tests.model.tokenizer.conftest import RESOLUTION, tokenizer_of
from tests.shapes import ring_and_box


@pytest.fixture(scope="module")
def saved_once(tokenizer: ShapeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(saved_once: Path, tmp_path: Path) -> Path:
    """A folder whose files may be replaced."""
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(saved_once / "model.safetensors")
    shutil.copy(saved_once / "config.json", folder)
    return folder


# --- save and load ---------------------------------------------------------------------------------------------------


def test_a_saved_tokenizer_gives_the_same_tokens_and_the_same_mesh(
    tokenizer: ShapeTokenizer, tokens: Tokens, tmp_path: Path
):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = ShapeTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (loaded.resolution, loaded.truncation_voxels) == (RESOLUTION, 2.0)
    assert loaded.encode(ring_and_box()) == tokens
    np.testing.assert_array_equal(loaded.decode(tokens).vertices, tokenizer.decode(tokens).vertices)


def test_half_precision_is_half_the_folder_and_a_tokenizer_of_its_own(tokenizer: ShapeTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "half", dtype=torch.float16)
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    loaded = ShapeTokenizer.from_pretrained(tmp_path / "half")
    for rounded, value in zip(loaded.vqvae.parameters(), tokenizer.vqvae.parameters(), strict=True):
        assert torch.equal(rounded, value.half().float())
    assert loaded.fingerprint == json.loads((tmp_path / "half" / "config.json").read_text())["fingerprint"]
    assert loaded.fingerprint != tokenizer.fingerprint
    loaded.save_pretrained(tmp_path / "again")
    assert ShapeTokenizer.from_pretrained(tmp_path / "again").fingerprint == loaded.fingerprint
    with pytest.raises(InputError, match=r"can't be saved as torch\.bfloat16"):
        tokenizer.save_pretrained(tmp_path / "again", dtype=torch.bfloat16)


def test_a_saved_folder_explains_itself(tokenizer: ShapeTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path, {"vae": {"cd_l1": 0.00946}, "codebook": {"stage2": {"usage": 0.5}}})
    card = (tmp_path / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "shape-tokenizer"
    assert f"`{tokenizer.fingerprint}`" in card
    assert f"{tokenizer.vocabulary.size} integers, 2 octree levels" in card
    assert "| | vae | codebook stage2 |" in card
    assert "| cd_l1 | 0.00946 |  |" in card
    assert "| usage |  | 0.5 |" in card
    tokenizer.save_pretrained(tmp_path)
    assert "None were given" in (tmp_path / "README.md").read_text()


def test_a_model_of_the_hub_comes_from_its_cache_without_network(
    tokenizer: ShapeTokenizer, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--someone--shapes"
    commit = "0123456789abcdef0123456789abcdef01234567"
    tokenizer.save_pretrained(model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    assert ShapeTokenizer.from_pretrained("hf://someone/shapes").encode(ring_and_box()) == tokens
    with pytest.raises(InputError, match="hf://someone/others: neither in the hub's cache nor to be fetched"):
        ShapeTokenizer.from_pretrained("hf://someone/others")


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"not a saved tokenizer .*config.json.*; run dvc repro, or name another"):
        ShapeTokenizer.from_pretrained(tmp_path)


def test_a_vae_has_no_tokens(tokenizer: ShapeTokenizer, tmp_path: Path):
    save_vae(tokenizer.vqvae.vae, tmp_path / "twin")
    with pytest.raises(InputError, match=r"twin: not a saved tokenizer \(config\.json: it is of a VAE, .* no codes\)"):
        ShapeTokenizer.from_pretrained(tmp_path / "twin")


def test_a_damaged_folder_is_refused(saved: Path):
    weights = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="not a saved tokenizer"):
        ShapeTokenizer.from_pretrained(saved)


def changed(config: dict, key: str, value: object) -> dict:
    """With another value at a dotted key; without the key where the value is None."""
    head, _, tail = key.partition(".")
    if tail:
        return config | {head: changed(config[head], tail, value)}
    return {k: v for k, v in config.items() if k != head} if value is None else config | {head: value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("vae.num_blocks", value) for value in (10**9, 10**4000, 2, 0, -1, 1.5, "1", True, [1], math.nan, None)),
        *(("vae.model_channels", value) for value in (10**9, 128, 63, 0, -64)),
        *(("vae.latent_channels", value) for value in (10**9, 9, 0)),
        *(("codebook.num_codes", value) for value in ([63], [10**12], [-64], [], [64] * 1000, 64, ["64"], [math.inf])),
        *(("codebook.dim", value) for value in (9, 10**9, 0)),
        *(("resolution", value) for value in (64, 10**9, 33, 0, -32, 32.0, "32", None)),
        *(("truncation_voxels", value) for value in (math.nan, math.inf, 0, -2.0, "2", 3.0)),
        *(("mode", value) for value in ("hollow", "auto", 1, {})),
        *(("max_bad_flip_ratio", value) for value in (2, -0.1, math.nan, 0.5)),
        *(("version", value) for value in (2, 4, None)),
        *(("fingerprint", value) for value in ("0" * 16, 7, None)),
        *(("extra", 1), ("vae.extra", 1), ("vae", []), ("codebook", None)),
    ],
)
def test_a_hostile_config_is_refused_at_once(saved: Path, key: str, value: object):
    file = saved / "config.json"
    file.write_text(json.dumps(changed(json.loads(file.read_text()), key, value)))
    started = time.process_time()
    with pytest.raises(InputError, match=r"not a saved tokenizer \(config\.json.*; run dvc repro") as refused:
        ShapeTokenizer.from_pretrained(saved)
    assert time.process_time() - started < 1
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\ufeff{}", '{"version": 3}'])
def test_a_config_that_is_none_is_refused(saved: Path, text: str):
    (saved / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"not a saved tokenizer \(config\.json"):
        ShapeTokenizer.from_pretrained(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_the_file_of_another_tokenizer_is_refused(tmp_path: Path, file: str):
    """Whose sizes are the same."""
    for seed in (0, 1):
        tokenizer_of(seed).save_pretrained(tmp_path / f"{seed}")
    (tmp_path / "1" / file).write_bytes((tmp_path / "0" / file).read_bytes())
    with pytest.raises(InputError, match=r"\(config\.json and model\.safetensors are not those saved together"):
        ShapeTokenizer.from_pretrained(tmp_path / "1")


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["vae.decoder.out_layer.bias", "quantizer.levels.0.codebook"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, part: str, value: float):
    spoilt = tokenizer_of()
    with torch.no_grad():
        dict(spoilt.vqvae.named_parameters())[part].view(-1)[0] = value
    spoilt.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=rf"not a saved tokenizer \(model\.safetensors: {part} holds NaN or infinity"):
        ShapeTokenizer.from_pretrained(tmp_path)


def test_weights_of_other_names_are_refused_before_a_network_is_made(saved_once: Path, tmp_path: Path):
    """With a fingerprint that is right: what such a folder says of its sizes is still not believed."""
    config = json.loads((saved_once / "config.json").read_text())
    written = {key: value for key, value in config.items() if key != "fingerprint"}
    written["vae"] |= {"num_blocks": 200, "model_channels": 4096}
    digest = write_tensors(tmp_path / "model.safetensors", load_file(saved_once / "model.safetensors"))
    written["fingerprint"] = Config(**written).fingerprint_with(digest)
    (tmp_path / "config.json").write_text(json.dumps(written))
    started = time.process_time()
    with pytest.raises(InputError, match=r"config\.json says .*num_blocks=200.* but model\.safetensors"):
        ShapeTokenizer.from_pretrained(tmp_path)
    assert time.process_time() - started < 1
