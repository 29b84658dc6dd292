"""Decide on held-out shapes whether the codebook is good enough to train the whole network with."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from model.errors import InputError
from model.kmeans import lloyd_pass
from model.quantizer import codebook_statistics
from tasks.latents import latents_file, read_vectors
from tasks.paths import CODEBOOK, LATENTS, METRICS, PASS_TOKEN
from tasks.settings import Gate, Settings
from tasks.stage import run_stage, write_whole
from tasks.stage1 import CODEBOOK_FILE


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
    codes = load_file(CODEBOOK / CODEBOOK_FILE)["codebook"]
    if not torch.isfinite(codes).all():
        raise InputError(f"{CODEBOOK / CODEBOOK_FILE} holds NaN or infinity; lower stage1.lr and run dvc repro stage1")
    heldout = lloyd_pass(read_vectors(latents_file(LATENTS, "val"), max_per_shape=None, seed=0), codes)
    seen = lloyd_pass(read_vectors(latents_file(LATENTS, "train"), max_per_shape=None, seed=0), codes)
    usage = codebook_statistics(heldout.counts)
    more_codes_used = "raise stage1.kmeans_iterations, encode.train_symmetries or the number of meshes, or lower codebook.size"
    return [
        Check(
            "tokens_per_code",
            usage.num_tokens / len(codes),
            params.min_tokens_per_code,
            "gate.min_tokens_per_code",
            True,
            "too few held-out tokens to judge by; raise encode.heldout_symmetries or voxelize.val_share",
        ),
        Check("usage", usage.usage, params.min_usage, "gate.min_usage", True, more_codes_used),
        Check(
            "perplexity_ratio",
            usage.perplexity / len(codes),
            params.min_perplexity_ratio,
            "gate.min_perplexity_ratio",
            True,
            more_codes_used,
        ),
        Check(
            "top_share",
            usage.top_share,
            params.max_top_share,
            "gate.max_top_share",
            False,
            "one code takes too much; look for empty or constant latents, or raise stage1.kmeans_iterations",
        ),
        Check(
            "error_ratio",
            float(heldout.squared_errors.mean() / seen.squared_errors.mean()),
            params.max_error_ratio,
            "gate.max_error_ratio",
            False,
            "the codes do not carry over to unseen shapes; add meshes or symmetries, or lower codebook.size",
        ),
        Check(
            "duplicate_codes",
            len(codes) - len(codes.unique(dim=0)),
            0,
            "no duplicate codes",
            False,
            "lower codebook.size, or add meshes",
        ),
    ]


if __name__ == "__main__":
    run_stage("gate", gate)
