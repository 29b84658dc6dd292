"""Decide on held-out shapes whether the codebook is good enough to train the whole network with."""

import json
from dataclasses import dataclass

from model.errors import InputError
from model.kmeans import lloyd_pass
from model.quantizer import codebook_statistics
from tasks.codebook import load_codebook
from tasks.latents import latents_file, read_vectors
from tasks.paths import LATENTS, METRICS, PASS_TOKEN
from tasks.settings import Gate, Settings
from tasks.stage import run_stage, write_whole


@dataclass(frozen=True)
class Check:
    """One figure held against its threshold."""

    figure: str
    value: float
    threshold: float
    parameter: str
    at_least: bool
    remedy: str

    @property
    def passed(self) -> bool:
        return self.value >= self.threshold if self.at_least else self.value <= self.threshold

    def __str__(self) -> str:
        relation = ">=" if self.at_least else "<="
        return f"{self.figure} {self.value:.4g} ({self.parameter}: {relation} {self.threshold:.4g})"


def gate(settings: Settings) -> None:
    """Write metrics/gate.json always, the pass token only when every figure is good enough."""
    PASS_TOKEN.unlink(missing_ok=True)
    checks = judge(settings.gate)
    verdict = {check.figure: check.value for check in checks} | {"passed": all(check.passed for check in checks)}
    write_whole(METRICS / "gate.json", json.dumps(verdict, indent=2) + "\n")
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check}")
    failed = [check for check in checks if not check.passed]
    if failed:
        raise InputError("the codebook is not good enough: " + "; ".join(f"{c}: {c.remedy}" for c in failed))
    # Constant, so that a threshold that still passes retrains nothing downstream.
    write_whole(PASS_TOKEN, "The codebook passed the gate; metrics/gate.json has the figures.\n")


def judge(params: Gate) -> list[Check]:
    codes = load_codebook()
    heldout = lloyd_pass(read_vectors(latents_file(LATENTS, "val"), max_per_shape=None, seed=0), codes)
    seen = lloyd_pass(read_vectors(latents_file(LATENTS, "train"), max_per_shape=None, seed=0), codes)
    use = codebook_statistics(heldout.counts)
    size = len(codes)
    error_ratio = float(heldout.squared_errors.mean() / seen.squared_errors.mean())
    num_duplicates = size - len(codes.unique(dim=0))
    more_tokens = "too few held-out tokens to judge by; raise encode.heldout_symmetries or voxelize.val_share"
    more_used = "raise stage1.kmeans_iterations or encode.train_symmetries, add meshes, or lower codebook.size"
    one_takes_all = "look for empty or constant latents, or raise stage1.kmeans_iterations"
    no_carry_over = "the codes do not carry over to unseen shapes; add meshes or symmetries, or lower codebook.size"
    return [
        at_least("tokens_per_code", use.num_tokens / size, "min_tokens_per_code", params, more_tokens),
        at_least("usage", use.usage, "min_usage", params, more_used),
        at_least("perplexity_ratio", use.perplexity / size, "min_perplexity_ratio", params, more_used),
        at_most("top_share", use.top_share, "max_top_share", params, one_takes_all),
        at_most("error_ratio", error_ratio, "max_error_ratio", params, no_carry_over),
        Check("duplicate_codes", num_duplicates, 0, "never allowed", False, "lower codebook.size, or add meshes"),
    ]


def at_least(figure: str, value: float, parameter: str, params: Gate, remedy: str) -> Check:
    return Check(figure, value, getattr(params, parameter), f"gate.{parameter}", True, remedy)


def at_most(figure: str, value: float, parameter: str, params: Gate, remedy: str) -> Check:
    return Check(figure, value, getattr(params, parameter), f"gate.{parameter}", False, remedy)


if __name__ == "__main__":
    run_stage("gate", gate)
