"""The last gate, on what stage 2 really leaves of a small project."""

import json
from pathlib import Path

import pytest

from model.errors import InputError
from model.files import write_whole
from model.tokenizer import ShapeTokenizer
from model.vqvae import load_vqvae, save_vqvae
from tasks.final_gate import final_gate, gain_over_stage1
from tasks.run import RefusedError, Settings, paths
from tasks.stage1 import stage1
from tasks.stage2 import stage2
from tests.shapes import ring_and_box


def lenient(settings: Settings, **thresholds: float) -> Settings:
    """What two validation shapes of random weights can reach."""
    wide = {"min_usage": 0.1, "min_perplexity_ratio": 0.01, "max_top_share": 1.0, "max_error_ratio": 100.0}
    params = settings.final_gate.model_copy(
        update=wide | {"min_tokens_per_code": 0.1, "min_l1_gain": -1.0} | thresholds
    )
    return settings.model_copy(update={"final_gate": params})


def write_evaluation() -> None:
    """What else the last gate depends on."""
    write_whole(paths.METRICS / "evaluate.json", json.dumps({"stage2": {"cd_l1": 0.0125}}))


def figures() -> dict[str, float]:
    return json.loads((paths.METRICS / "final_gate.json").read_text())


def test_a_tokenizer_that_passes_has_its_verdict_and_its_card(small_project: Path, two_levels: Settings):
    stage1(two_levels)
    stage2(two_levels)
    write_evaluation()
    final_gate(lenient(two_levels))
    assert figures()["passed"] is True
    assert json.loads((paths.TOKENIZER / "verdict.json").read_text()) == figures()
    assert {"usage", "level2_usage", "l1_gain", "error_ratio", "level2_duplicate_codes"} < set(figures())
    card = (paths.TOKENIZER / "README.md").read_text()
    assert "0.0125" in card
    assert "final gate" in card
    tokenizer = ShapeTokenizer.from_pretrained(paths.TOKENIZER)
    assert tokenizer.encode(ring_and_box()).indices.shape[1] == 2


def test_a_codebook_that_collapsed_in_stage_2_is_refused_with_figure_threshold_and_remedy(
    trained_project: Path, small_settings: Settings
):
    write_evaluation()
    vqvae = load_vqvae(paths.STAGE2).vqvae
    vqvae.quantizer.codebooks[0].data[1:] += 1000.0  # which no latent is near to
    save_vqvae(vqvae, paths.STAGE2)
    with pytest.raises(RefusedError) as raised:
        final_gate(lenient(small_settings, min_usage=0.9))
    assert str(raised.value).startswith("the tokenizer is not good enough: usage 0.0625 (final_gate.min_usage: >= 0.9)")
    assert "let the codes follow (codebook.update: ema" in str(raised.value)
    assert figures()["passed"] is False
    assert not paths.TOKENIZER.exists()


def test_codes_that_are_not_finite_are_refused(trained_project: Path, small_settings: Settings):
    write_evaluation()
    vqvae = load_vqvae(paths.STAGE2).vqvae
    vqvae.quantizer.codebooks[0].data[3] = float("nan")
    save_vqvae(vqvae, paths.STAGE2)
    with pytest.raises(InputError, match=r"artifacts/stage2/.*quantizer\.levels\.0\.codebook holds NaN or infinity"):
        final_gate(lenient(small_settings))


def test_stage_2_has_to_improve_on_stage_1_shape_by_shape(small_settings: Settings):
    params = small_settings.final_gate.model_copy(update={"min_l1_gain": 0.0})
    names = [f"shape{i}" for i in range(20)]
    hard = {name: 0.05 + 0.02 * i for i, name in enumerate(names)}  # shapes differ more than stages

    def validation(gain: dict[str, float]) -> dict:
        after = {name: {"val_l1": hard[name] - gain[name]} for name in names}
        return {"before": {name: {"val_l1": l1} for name, l1 in hard.items()}, "after": after}

    passed = gain_over_stage1(validation(dict.fromkeys(names, 0.01)), params)
    assert passed.passed
    assert passed.value == pytest.approx(0.01)
    mixed = gain_over_stage1(validation({name: 0.01 if i % 2 else -0.009 for i, name in enumerate(names)}), params)
    assert not mixed.passed  # a mean gain of 0.0005, which chance explains
    assert "raise stage2.steps" in mixed.remedy


def test_without_figures_of_evaluate_there_is_no_card(trained_project: Path, small_settings: Settings):
    with pytest.raises(InputError, match=r"metrics/evaluate\.json does not exist; run dvc repro -f evaluate"):
        final_gate(lenient(small_settings))
