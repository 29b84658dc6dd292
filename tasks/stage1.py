"""Train the codebook on cached latents, the network frozen: k-means, then steps by averages or on the vq loss."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from model.checkpoint import load_vae
from model.device import pick_device
from model.distributed import in_process_group, rank
from model.files import whole_directory
from model.quantizer import (
    ResidualQuantizer,
    TrainedCodebook,
    distinct_vectors,
    gaussian_error_bound,
    kmeans,
    nearest_codes,
    normalised_error,
    spectrum,
    statistics_of_levels,
)
from model.sparse import SparseTensor
from model.vae import SDFTarget
from model.vqvae import VQVAE
from tasks.data import Codebooks, VectorBatch, draw_vectors, imported_codes, read_vectors, save_codebooks
from tasks.run import Settings, Stage1, paths, run_stage, write_metrics
from tasks.shards import Shards, open_shards
from tasks.training import History, Losses, ResumePoint, fingerprint, train, validate


@in_process_group()
def stage1(settings: Settings) -> None:
    params, sizes = settings.stage1, settings.codebook.per_level
    device = pick_device()
    torch.manual_seed(params.seed)
    cached = read_vectors(paths.LATENTS, "train", max_per_view=params.max_vectors_per_view, seed=params.seed)
    # a pattern that every shape has must not draw all codes
    vectors = distinct_vectors(cached.to(device), max(sizes))
    heldout = read_vectors(paths.LATENTS, "val", max_per_view=None, seed=params.seed).to(device)

    shards = open_shards(paths.SDF)
    inputs = [*paths.LATENTS.iterdir(), *paths.VAE.iterdir()]
    resume = ResumePoint("stage1", fingerprint("stage1", [params, settings.codebook], shards.digest(), inputs))
    start = start_levels(vectors, sizes, params, resume)
    shared = settings.codebook
    codebook = TrainedCodebook(start, update=shared.update, decay=shared.ema_decay, revive_below=shared.revive_below)
    watch = _ReconstructionWatch(codebook, shards, params, device)
    steps = CodebookSteps(codebook, settings)

    train(
        codebook,
        param_groups(codebook),
        steps.losses,
        lambda step: draw_vectors(vectors, params, step),
        settings=params,
        section="stage1",
        resume=resume,
        history=History(paths.METRICS / "stage1_history.tsv", settings.tracking),
        validate=watch,
        validate_every=params.recon_every,
        after_step=steps.after,
    )
    watch.check_frozen()
    if rank() > 0:
        return
    candidates = {"start": ResidualQuantizer.of(start), "trained": ResidualQuantizer.of(codebook.codebooks)}
    errors = {name: normalised_error(heldout, quantizer, reference=heldout) for name, quantizer in candidates.items()}
    kept = min(errors, key=lambda name: errors[name])
    quantizer = candidates[kept]
    with whole_directory(paths.CODEBOOK) as directory:
        save_codebooks(quantizer.codebooks, directory)
    figures = {
        "num_vectors": len(vectors),
        "kept": kept,
        "train_error": normalised_error(vectors, quantizer, reference=heldout),
        "heldout_error": errors[kept],
        **{f"heldout_error_{name}": error for name, error in errors.items()},
        "gaussian_bound": gaussian_error_bound(vectors, bits=quantizer.bits),
        "heldout": {
            f"level{level}": asdict(use) for level, use in enumerate(statistics_of_levels(quantizer, heldout), start=1)
        },
        "variance_in_first": spectrum(vectors),
    }
    write_metrics("stage1", figures)
    resume.finish()


def start_levels(
    vectors: Float[Tensor, "num_vectors dim"], sizes: Sequence[int], params: Stage1, resume: ResumePoint
) -> Codebooks:
    """Codes of each level, from what the levels before it leave; made once, however often the run is interrupted.

    The vectors are distinct. Raises InputError where what is left of them is less than a level's codes.
    """
    if params.init == "imported":
        return [codes.to(vectors.device) for codes in imported_codes(sizes)]
    codebooks: Codebooks = []
    left = vectors
    for level, size in enumerate(sizes, start=1):
        codes = resume.remember(f"start{level}", partial(start_codes, left, size, params)).to(vectors.device)
        codebooks.append(codes)
        if level < len(sizes):
            left = distinct_vectors(left - codes[nearest_codes(left, codes)], sizes[level])
    return codebooks


def start_codes(
    distinct: Float[Tensor, "num_vectors dim"], size: int, params: Stage1
) -> Float[Tensor, "codebook_size dim"]:
    """By params.init, from at least as many distinct vectors as there are to be codes."""
    generator = torch.Generator().manual_seed(params.seed)
    match params.init:
        case "kmeans":
            print(f"k-means: {len(distinct)} vectors, {size} codes, {params.kmeans_iterations} iterations", flush=True)
            return kmeans(distinct, size, iterations=params.kmeans_iterations, generator=generator).cpu()
        case "data":
            rows = torch.randperm(len(distinct), generator=generator)[:size]
            return distinct[rows.to(distinct.device)].cpu()
        case "uniform":
            return (torch.rand(size, distinct.shape[1], generator=generator) * 2 - 1) / size
        case "imported":
            raise AssertionError("imported codes are not drawn")


def param_groups(codebook: TrainedCodebook) -> list[dict[str, Any]]:
    """For the optimizer, which has to leave codes alone that follow their averages."""
    rate = {} if codebook.by_gradient else {"lr": 0.0}
    return [{"params": list(codebook.codebooks)} | rate]


class CodebookSteps:
    """What the training loop does with a batch: the losses, then what no gradient does."""

    def __init__(self, codebook: TrainedCodebook, settings: Settings):
        self._codebook, self._lambda_vq = codebook, settings.codebook.lambda_vq
        self._num_steps = settings.stage1.steps
        self._draws: Tensor | None = None

    def losses(self, batch: VectorBatch) -> Losses:
        """With the network frozen, only the vq term has a gradient; the commitment is watched."""
        quantized = self._codebook(batch.vectors)
        self._draws = batch.draws
        return {
            "loss": self._lambda_vq * quantized.vq_loss,
            "vq_loss": quantized.vq_loss,
            "commitment_loss": quantized.commitment_loss,
        }

    def after(self, step: int, optimizer: torch.optim.Optimizer) -> Losses:
        assert self._draws is not None
        revived = self._codebook.end_step(step, self._num_steps, draws=self._draws, optimizer=optimizer)
        return {"revived_codes": revived} | self._codebook.rolling_use()


class _ReconstructionWatch:
    """Decodes some validation shapes through the frozen network with the codes as they are now."""

    def __init__(self, quantizer: ResidualQuantizer, shards: Shards, params: Stage1, device: torch.device):
        self._shards = shards
        self._names = self._shards.names("val")[: params.recon_shapes]
        self._vae = load_vae(paths.VAE, device=device).requires_grad_(False)
        self._before = {key: value.clone() for key, value in self._vae.state_dict().items()}
        self._vqvae = VQVAE(self._vae, quantizer)
        self._device = device

    def __call__(self) -> dict[str, float]:
        def reconstruct(target: SDFTarget) -> SparseTensor:
            return self._vqvae(target.band, target.plan).decoded

        return validate(reconstruct, self._shards, self._names, device=self._device)

    def check_frozen(self) -> None:
        changed = [key for key, value in self._vae.state_dict().items() if not torch.equal(value, self._before[key])]
        assert not changed, f"stage 1 changed the network: {changed}"


if __name__ == "__main__":
    run_stage("stage1", stage1)
