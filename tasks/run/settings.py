"""The one reader of params.yaml: frozen, typed, with the full path of whatever is wrong.

There are no defaults here; params.yaml is the only place that holds a value.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator, model_validator
from pydantic_core import ErrorDetails

from model.bricks import BRICK_SIZE
from model.errors import InputError
from tasks.run.paths import FETCHED, MESHES, PRETRAINED

PARAMS_FILE = Path("params.yaml")

VERSION = 2  # of the keys in params.yaml
WHAT_CHANGED = "codebook.size is codebook.num_codes, and the section upstream says which optional stages run"
# Keys of earlier versions, and what became of them.
RENAMED = {"codebook.size": "codebook.num_codes"}

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Recon = Literal["l1", "l2", "l1+l2"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # every generator takes it, also a million times as large


class ParameterError(InputError):
    """params.yaml holds something that no stage could use; the message names key, value and remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _expected(what: str) -> WrapValidator:
    """One sentence for a value of no kind that is allowed; pydantic has one a kind, under keys that no file has."""

    def check(value: Any, validated: Callable[[Any], Any]) -> Any:
        try:
            return validated(value)
        except ValidationError as error:
            raise ValueError(f"got {value!r}; expected {what}") from error

    return WrapValidator(check)


# DVC makes a stage of each entry.
Run = Annotated[tuple[Literal["run"], ...], Field(max_length=1), _expected("[run] or []")]


class Upstream(Section):
    """Which of the optional stages are in the graph."""

    fetch_meshes: Run
    pretrain_vae: Run
    fetch_vae: Run
    twin: Run


class Tracking(Section):
    """Where histories go besides metrics/, while training runs."""

    writer: Literal["tensorboard", "dvclive", "wandb", "trackio"] | None

    @model_validator(mode="after")
    def is_installed(self) -> Self:
        if self.writer and find_spec(self.writer) is None:
            raise ValueError(
                f"writer is {self.writer}, which is not installed; .venv/bin/python -m pip install --editable "
                f"'.[{self.writer}]', or set writer: null"
            )
        return self


# What pip could read otherwise, as an option, a path or an address, is refused.
OneVersion = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+]+$"),
    _expected("one version of one package, as in metaworld==3.1.1"),
]


class FetchMeshes(Section):
    wheel: OneVersion
    sha256: Sha256
    pattern: str


class Voxelize(Section):
    meshes: Path
    resolution: Annotated[int, Field(ge=24, le=2048, multiple_of=BRICK_SIZE)]
    truncation_voxels: Annotated[float, Field(ge=1, le=8)]
    mode: Literal["auto", "solid", "shell"]
    max_bad_flip_ratio: Share
    val_share: Annotated[float, Field(gt=0, lt=1)]
    test_share: Annotated[float, Field(gt=0, lt=1)]
    shapes_per_shard: Count
    max_rejected_share: Share
    max_seconds: Positive
    max_memory_gb: Positive
    dask_scheduler: str | None

    @model_validator(mode="after")
    def leave_meshes_to_train_on(self) -> Self:
        if self.val_share + self.test_share >= 1:
            raise ValueError(
                f"val_share {self.val_share} and test_share {self.test_share} leave nothing to train on; "
                "make their sum less than 1"
            )
        return self


class Training(Section):
    """What the training loop of tasks/training reads, whichever stage calls it."""

    steps: Count
    lr: Positive
    warmup_steps: CountOrZero
    weight_decay: NotNegative
    max_grad_norm: Positive
    log_every: Count
    save_every: Count
    seed: Seed

    @model_validator(mode="after")
    def leave_steps_after_the_warmup(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is not less than steps {self.steps}; lower it")
        return self


class ShapeTraining(Training):
    """Training on batches of shapes."""

    batch_voxels: Count
    shape_voxels: Annotated[int, Field(ge=512)]  # a brick's
    recon: Recon
    lambda_outside: NotNegative
    outside_share: Annotated[float, Field(gt=0, le=1)]
    augment: bool
    recompute: bool
    validate_every: Count

    @model_validator(mode="after")
    def leave_room_for_a_shape(self) -> Self:
        if self.batch_voxels < self.shape_voxels:
            raise ValueError(
                f"batch_voxels {self.batch_voxels} is less than shape_voxels {self.shape_voxels}, what a single shape "
                "may have; raise the one or lower the other"
            )
        return self

    @property
    def shapes_at_least(self) -> int:
        """How many shapes every batch has room for, however large they are."""
        return self.batch_voxels // self.shape_voxels


class PretrainVae(ShapeTraining):
    start_from: str | None
    model_channels: Annotated[int, Field(ge=64, multiple_of=64)]
    num_blocks: Count
    latent_channels: Count
    lambda_kl: NotNegative


class FetchVae(Section):
    source: Annotated[str, Field(pattern=r"^(hf://|https://huggingface\.co/)")]
    sha256: Sha256 | None


class ImportVae(Section):
    checkpoint: str

    @model_validator(mode="after")
    def dvc_can_hash_it(self) -> Self:
        if self.checkpoint.startswith(("hf://", "https://")):
            raise ValueError(
                f"checkpoint is {self.checkpoint}; expected a file or folder here; for weights on the hub set it to "
                f"{FETCHED}, upstream.fetch_vae to [run] and fetch_vae.source to their address"
            )
        return self


class Encode(Section):
    train_symmetries: Annotated[int, Field(ge=1, le=48)]
    heldout_symmetries: Annotated[int, Field(ge=1, le=48)]


NumCodes = Annotated[int, Field(ge=2)]


class Codebook(Section):
    num_levels: Annotated[int, Field(ge=1, le=8)]
    num_codes: Annotated[
        NumCodes | tuple[NumCodes, ...], _expected("a number of codes, 2 or more, or a list of one for each level")
    ]
    dim: Annotated[Count | Literal["auto"], _expected("auto, or how many latent channels the VAE has")]
    update: Literal["gradient", "ema"]
    ema_decay: Annotated[float, Field(gt=0, lt=1)]
    revive_below: Annotated[float, Field(ge=0, lt=1)]
    lambda_vq: Positive

    @property
    def per_level(self) -> tuple[int, ...]:
        """The number of codes of each level."""
        return self.num_codes if isinstance(self.num_codes, tuple) else (self.num_codes,) * self.num_levels

    @model_validator(mode="after")
    def as_many_numbers_as_levels(self) -> Self:
        if len(self.per_level) != self.num_levels:
            raise ValueError(
                f"num_levels is {self.num_levels} but num_codes lists {len(self.per_level)}; "
                "list one for each level, or give one number for all"
            )
        return self


class Stage1(Training):
    batch_size: Count
    max_vectors_per_view: Count
    init: Literal["kmeans", "data", "uniform", "imported"]
    kmeans_iterations: Count
    recon_shapes: Count
    recon_every: Count


class CodebookThresholds(Section):
    """On held-out shapes, of each level of codes."""

    min_usage: Share
    min_perplexity_ratio: Share
    max_top_share: Share
    max_error_ratio: Positive
    min_tokens_per_code: Positive


class FinalGate(CodebookThresholds):
    """Of the finished tokenizer."""

    min_l1_gain: float  # the low end of the 95 % interval, paired by shape, of what stage 2 takes from the L1


class Stage2(ShapeTraining):
    train: Literal["all", "decoder"]
    encoder_lr_ratio: Annotated[float, Field(gt=0, le=1)]
    lambda_commitment: NotNegative


class Evaluate(Section):
    num_points: Count
    fscore_thresholds: Annotated[tuple[Positive, ...], Field(min_length=1)]
    picture_shapes: Count
    report_shapes: Annotated[int, Field(ge=1, le=400)]  # the bounds keep the report below 20 MB
    report_views: Annotated[int, Field(ge=1, le=12)]
    seed: Seed


class Settings(Section):
    version: int
    upstream: Upstream
    tracking: Tracking
    fetch_meshes: FetchMeshes
    voxelize: Voxelize
    pretrain_vae: PretrainVae
    fetch_vae: FetchVae
    import_vae: ImportVae
    encode: Encode
    codebook: Codebook
    stage1: Stage1
    gate: CodebookThresholds
    stage2: Stage2
    evaluate: Evaluate
    final_gate: FinalGate

    @model_validator(mode="after")
    def what_is_made_here_is_what_is_used(self) -> Self:
        used = {
            "fetch_meshes": ("voxelize.meshes", self.voxelize.meshes, MESHES),
            "pretrain_vae": ("import_vae.checkpoint", Path(self.import_vae.checkpoint), PRETRAINED),
            "fetch_vae": ("import_vae.checkpoint", Path(self.import_vae.checkpoint), FETCHED),
        }
        for stage, (key, path, made) in used.items():
            if path.is_relative_to(made) and not getattr(self.upstream, stage):
                raise ValueError(f"{key} is {path}, which a stage makes that is left out; set upstream.{stage}: [run]")
        return self

    @model_validator(mode="after")
    def codes_fit_the_latents(self) -> Self:
        trained_here = bool(self.upstream.pretrain_vae)
        if trained_here and self.codebook.dim not in ("auto", self.pretrain_vae.latent_channels):
            raise ValueError(
                f"codebook.dim is {self.codebook.dim} but pretrain_vae.latent_channels is "
                f"{self.pretrain_vae.latent_channels}; make them equal"
            )
        return self


def load_settings(path: Path = PARAMS_FILE) -> Settings:
    """All of params.yaml, checked as a whole.

    Raises ParameterError naming every wrong key by its full path.
    """
    if not path.is_file():
        raise ParameterError(f"{path} does not exist; run from the repository root, or restore it with git checkout")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if isinstance(values, dict) and values.get("version") != VERSION:
        raise ParameterError(
            f"{path} has version {values.get('version', 1)!r} but this code reads {VERSION}; bring its keys up to date "
            f"({WHAT_CHANGED}; git diff params.yaml shows yours) and set version: {VERSION}"
        )
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ParameterError("; ".join(f"{path}: {_problem(detail)}" for detail in error.errors())) from error


def _problem(detail: ErrorDetails) -> str:
    """The key that is wrong, and why."""
    key = ".".join(str(part) for part in detail["loc"]) or "(top level)"
    match detail["type"]:
        case "extra_forbidden" if key in RENAMED:
            return f"{key}: is called {RENAMED[key]} now; rename it"
        case "extra_forbidden":
            return f"{key}: unknown key; remove it or correct its spelling"
        case "missing":
            return f"{key}: missing; add it (git diff params.yaml shows what was there)"
        case "value_error":
            return f"{key}: {detail['ctx']['error']}"
        case _:
            return f"{key}: got {detail['input']!r}; {detail['msg'][:1].lower()}{detail['msg'][1:]}"
