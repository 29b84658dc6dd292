"""Decide on held-out shapes whether the codebook is good enough to train the whole network with."""

import json
import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from model.device import pick_device
from model.errors import InputError
from model.files import whole_directory, write_whole
from model.quantizer import Lloyd, codebook_statistics, lloyd_pass
from model.report import draw_codebook
from tasks.data import latents_file, load_codebook, read_vectors
from tasks.run import CODEBOOK_PLOTS, LATENTS, METRICS, PASS_TOKEN, Gate, RefusedError, Settings, run_stage


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
    codes = load_codebook()
    vectors = {split: _finite_vectors(split) for split in ("train", "val")}
    seen, heldout = _nearest(vectors["train"], codes), _nearest(vectors["val"], codes)
    with whole_directory(CODEBOOK_PLOTS) as directory:
        for name, content in draw_codebook(vectors["val"], heldout.indices, codes).items():
            write_whole(directory / name, content)
    checks = judge(settings.gate, codes, seen=seen, heldout=heldout)
    verdict = {check.figure: check.value for check in checks} | {"passed": all(check.passed for check in checks)}
    write_whole(METRICS / "gate.json", json.dumps(verdict, indent=2) + "\n")
    for check in checks:
        print(f"{'pass' if check.passed else 'FAIL'}  {check}")
    failed = [check for check in checks if not check.passed]
    if failed:
        raise RefusedError("the codebook is not good enough: " + "; ".join(f"{c}: {c.remedy}" for c in failed))
    # Constant, so that a threshold that still passes retrains nothing downstream.
    write_whole(PASS_TOKEN, "The codebook passed the gate; metrics/gate.json has the figures.\n")


def _finite_vectors(split: str) -> Float[Tensor, "num_vectors dim"]:
    file = latents_file(LATENTS, split)
    vectors = read_vectors(file, max_per_view=None, seed=0)
    if not vectors.isfinite().all():
        raise InputError(f"{file} holds NaN or infinity; look at metrics/import_vae.json, then run dvc repro -f encode")
    return vectors


def _nearest(vectors: Float[Tensor, "num_vectors dim"], codes: Float[Tensor, "codebook_size dim"]) -> Lloyd:
    """On the GPU where there is one; the result is on the CPU."""
    device = pick_device()
    return Lloyd(*(part.cpu() for part in lloyd_pass(vectors.to(device), codes.to(device))))


def judge(params: Gate, codes: Float[Tensor, "codebook_size dim"], *, seen: Lloyd, heldout: Lloyd) -> list[Check]:
    """Every figure beside its threshold; seen and heldout are passes over training and validation latents."""
    use = codebook_statistics(heldout.counts)
    size = len(codes)
    error_ratio = float(heldout.squared_errors.mean() / seen.squared_errors.mean())
    num_duplicates = size - len(codes.unique(dim=0))
    shown = 1 - math.exp(-use.num_tokens / size)
    more_tokens = (
        f"too few held-out tokens to judge by (of codes in even use, {shown:.1%} would occur); "
        "raise encode.heldout_symmetries or voxelize.val_share"
    )
    more_used = (
        "set stage1.init: kmeans, raise stage1.kmeans_iterations or encode.train_symmetries, add meshes, "
        "or lower codebook.num_codes"
    )
    one_takes_all = "look for empty or constant latents, set stage1.init: kmeans, or raise stage1.kmeans_iterations"
    no_carry_over = (
        "the codes do not carry over to unseen shapes; add meshes or symmetries, or lower codebook.num_codes"
    )
    return [
        at_least("tokens_per_code", use.num_tokens / size, "min_tokens_per_code", params, more_tokens),
        at_least("usage", use.usage, "min_usage", params, more_used),
        at_least("perplexity_ratio", use.perplexity / size, "min_perplexity_ratio", params, more_used),
        at_most("top_share", use.top_share, "max_top_share", params, one_takes_all),
        at_most("error_ratio", error_ratio, "max_error_ratio", params, no_carry_over),
        Check("duplicate_codes", num_duplicates, 0, "never allowed", False, "lower codebook.num_codes, or add meshes"),
    ]


def at_least(figure: str, value: float, parameter: str, params: Gate, remedy: str) -> Check:
    return Check(figure, value, getattr(params, parameter), f"gate.{parameter}", True, remedy)


def at_most(figure: str, value: float, parameter: str, params: Gate, remedy: str) -> Check:
    return Check(figure, value, getattr(params, parameter), f"gate.{parameter}", False, remedy)


if __name__ == "__main__":
    run_stage("gate", gate)
