"""The gate, on latents and codes whose figures can be counted by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from model.errors import InputError
from tasks import data
from tasks.data import ShapeLatents, latents_file, load_codebooks, read_vectors, save_codebooks
from tasks.gate import OF_STAGE1, gate
from tasks.judging import Check, judge, lloyd_passes, refuse_failed
from tasks.run import CodebookThresholds, RefusedError, Settings, load_settings, paths

ROOT = Path(__file__).parents[2]
NUM_CODES, PER_CODE = 8, 25
REFUSAL = "the codebook is not good enough: "
THRESHOLDS = {
    "min_usage": 0.9,
    "min_perplexity_ratio": 0.5,
    "max_top_share": 0.2,
    "max_error_ratio": 1.5,
    "min_tokens_per_code": 20.0,
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes at 0, 10, 20, ... and as many latents at distance 1 of each, 25 per code, in both splits."""
    monkeypatch.chdir(tmp_path)
    write_codes(codes())
    write_latents("train", around(codes().repeat(PER_CODE, 1)))
    write_latents("val", around(codes().repeat(PER_CODE, 1)))


def codes() -> torch.Tensor:
    return torch.stack([10.0 * torch.arange(NUM_CODES), torch.zeros(NUM_CODES)], 1)


def around(points: torch.Tensor, *, distance: float = 1.0) -> torch.Tensor:
    return points + torch.tensor([0.0, distance])


def write_codes(values: torch.Tensor) -> None:
    paths.CODEBOOK.mkdir(parents=True, exist_ok=True)
    save_codebooks([values], paths.CODEBOOK)


def write_latents(split: str, vectors: torch.Tensor) -> None:
    paths.LATENTS.mkdir(parents=True, exist_ok=True)
    parts = enumerate(vectors.split(60) if len(vectors) else [])  # several shapes
    views = (ShapeLatents(f"shape{number}", 0, torch.zeros(len(part), 3), part) for number, part in parts)
    data.write_latents(latents_file(paths.LATENTS, split), views)


def settings(**thresholds: float) -> Settings:
    shipped = load_settings(ROOT / "params.yaml")
    return shipped.model_copy(update={"gate": CodebookThresholds(**(THRESHOLDS | thresholds))})


def verdict() -> dict:
    return json.loads((paths.METRICS / "gate.json").read_text())


# --- passing ---------------------------------------------------------------------------------------------------------


def test_a_codebook_in_uniform_use_passes_with_these_figures():
    gate(settings())
    assert paths.PASS_TOKEN.is_file()
    figures = verdict()
    assert figures["passed"] is True
    assert figures["tokens_per_code"] == PER_CODE
    assert figures["usage"] == 1
    assert figures["perplexity_ratio"] == pytest.approx(1)
    assert figures["top_share"] == pytest.approx(1 / NUM_CODES)
    assert figures["error_ratio"] == pytest.approx(1)
    assert figures["duplicate_codes"] == 0


def test_a_figure_that_equals_its_threshold_passes():
    exactly = settings(min_usage=1.0, max_top_share=1 / NUM_CODES, min_tokens_per_code=PER_CODE)
    assert all(check.passed for check in judged(exactly))


def test_the_pass_token_says_nothing_of_the_thresholds():
    """So that a threshold that still passes reruns nothing behind the gate."""
    gate(settings())
    before = paths.PASS_TOKEN.read_bytes()
    gate(settings(min_usage=0.1))
    assert paths.PASS_TOKEN.read_bytes() == before


def test_the_pictures_and_their_tables_are_left_whether_it_passes_or_not():
    gate(settings())
    first = {path.name: path.read_bytes() for path in paths.CODEBOOK_PLOTS.iterdir()}
    assert all(content.startswith(b"\x89PNG") for name, content in first.items() if name.endswith("png"))
    assert sorted(first) == [
        f"codebook_{name}"
        for name in ("neighbours.png", "pca.png", "spectrum.png", "spectrum.tsv", "use.png", "use.tsv")
    ]
    use = pd.read_csv(paths.CODEBOOK_PLOTS / "codebook_use.tsv", sep="\t")
    assert use.tokens.tolist() == NUM_CODES * [PER_CODE]
    assert use.distance_to_nearest_code.tolist() == NUM_CODES * [10]
    write_latents("val", around(codes()[:4].repeat(60, 1)))
    with pytest.raises(InputError):
        gate(settings())
    use = pd.read_csv(paths.CODEBOOK_PLOTS / "codebook_use.tsv", sep="\t")
    assert use.tokens.tolist() == 4 * [60] + 4 * [0]


# --- failing ---------------------------------------------------------------------------------------------------------


def test_too_few_tokens_to_judge_by():
    fails(settings(min_tokens_per_code=26), "tokens_per_code", "25 (gate.min_tokens_per_code: >= 26)", "heldout_symm")


def test_unused_codes():
    write_latents("val", around(codes()[:4].repeat(60, 1)))
    fails(settings(), "usage", "0.5 (gate.min_usage: >= 0.9)", "raise stage1.kmeans_iterations", ["top_share"])


def test_uneven_use():
    """Entropy of shares 0.79 and seven of 0.03 in nats: 0.923; its exponential over 8 is 0.31."""
    counts = torch.tensor([184] + 7 * [7])
    write_latents("val", around(codes().repeat_interleave(counts, 0)))
    share = counts / counts.sum()
    ratio = float((-(share * share.log()).sum()).exp()) / 8
    message = f"{ratio:.4g} (gate.min_perplexity_ratio: >= 0.5)"
    fails(settings(max_top_share=1.0), "perplexity_ratio", message, "raise stage1.kmeans_iterations")


def test_a_code_that_takes_too_much():
    counts = torch.tensor([75] + 7 * [25])
    write_latents("val", around(codes().repeat_interleave(counts, 0)))
    fails(settings(), "top_share", "0.3 (gate.max_top_share: <= 0.2)", "look for empty or constant latents")


def test_codes_that_do_not_carry_over():
    write_latents("val", around(codes().repeat(PER_CODE, 1), distance=2.0))
    fails(settings(), "error_ratio", "4 (gate.max_error_ratio: <= 1.5)", "do not carry over to unseen shapes")


def test_duplicate_codes():
    doubled = codes()
    doubled[7] = doubled[6]
    write_codes(doubled)
    write_latents("train", around(doubled.repeat(PER_CODE, 1)))
    write_latents("val", around(doubled.repeat(PER_CODE, 1)))
    relaxed = settings(min_usage=0.5, max_top_share=0.5)
    fails(relaxed, "duplicate_codes", "1 (never allowed: <= 0)", "lower codebook.num_codes")


def judged(wanted: Settings) -> list[Check]:
    """What the gate finds, without its pictures, which take a second."""
    codebooks = load_codebooks()
    vectors = (read_vectors(paths.LATENTS, split, max_per_view=None, seed=0) for split in ("train", "val"))
    seen, heldout = (lloyd_passes(codebooks, latents) for latents in vectors)
    return judge(wanted.gate, "gate", codebooks, OF_STAGE1, seen=seen, heldout=heldout)


def fails(wanted: Settings, figure: str, comparison: str, remedy: str, also: list[str] | None = None) -> None:
    """The figure fails, alone but for `also`; the message has figure, threshold and remedy."""
    checks = judged(wanted)
    assert {check.figure for check in checks if not check.passed} == {figure, *(also or [])}
    with pytest.raises(RefusedError) as raised:
        refuse_failed(checks, "the codebook")
    assert str(raised.value).startswith(REFUSAL)
    assert f"{figure} {comparison}" in str(raised.value)
    assert remedy in str(raised.value)
    assert "\n" not in str(raised.value)


def test_all_figures_that_fall_short_are_named():
    write_latents("val", around(codes()[:1].repeat(30, 1), distance=3.0))
    with pytest.raises(RefusedError) as raised:
        refuse_failed(judged(settings()), "the codebook")
    for figure in ("tokens_per_code", "usage", "perplexity_ratio", "top_share", "error_ratio"):
        assert f"{figure} " in str(raised.value)


def test_failing_takes_back_an_earlier_pass():
    gate(settings())
    with pytest.raises(RefusedError, match=rf"^{REFUSAL}tokens_per_code 25 "):
        gate(settings(min_tokens_per_code=1000))
    assert not paths.PASS_TOKEN.exists()
    assert verdict()["passed"] is False


# --- what cannot be judged -------------------------------------------------------------------------------------------


def test_codes_that_are_not_finite():
    spoilt = codes()
    spoilt[3, 1] = torch.nan
    write_codes(spoilt)
    with pytest.raises(
        InputError, match=r"codebook\.safetensors: level1 holds NaN or infinity; run dvc repro -f stage1"
    ):
        gate(settings())


@pytest.mark.parametrize("split", ["train", "val"])
def test_latents_that_are_not_finite(split: str):
    spoilt = around(codes().repeat(PER_CODE, 1))
    spoilt[3, 1] = torch.inf
    write_latents(split, spoilt)
    with pytest.raises(InputError, match=rf"latents holds NaN or infinity, in {split}; .*dvc repro -f encode"):
        gate(settings())


def test_no_held_out_shapes():
    write_latents("val", torch.zeros(0, 2))
    with pytest.raises(InputError, match=r"val-00000-of-00001\.parquet holds no shape; raise voxelize\.val_share"):
        gate(settings())


@pytest.mark.parametrize("damage", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-20])])
def test_damaged_latents(damage):
    damage(latents_file(paths.LATENTS, "val"))
    with pytest.raises(InputError, match=r"val-00000-of-00001\.parquet .*; run dvc repro -f encode"):
        gate(settings())


# --- residual levels -------------------------------------------------------------------------------------------------


def test_each_level_is_judged_on_what_the_levels_before_it_leave():
    """All latents are at distance 1 above their codes, so that of a second level's three codes one gets them all."""
    save_codebooks([codes(), torch.tensor([[1.0, 0.0], [0.0, 1.5], [0.0, 500.0]])], paths.CODEBOOK)
    with pytest.raises(InputError) as raised:
        gate(settings(max_top_share=1.0, max_error_ratio=1e9))
    assert "level2_usage 0.3333 (gate.min_usage: >= 0.9)" in str(raised.value)
    assert verdict()["usage"] == 1
    assert verdict()["level2_tokens_per_code"] == pytest.approx(NUM_CODES * PER_CODE / 3)
