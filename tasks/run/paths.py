"""Where every stage's files are, relative to the repository root. dvc.yaml names the same paths; a test compares."""

from pathlib import Path

MESHES = Path("data/meshes")
SDF = Path("data/sdf")
SDF_SECONDS = Path("data/sdf_seconds.parquet")  # apart from data/sdf, whose bytes must not depend on the clock
PRETRAINED = Path("artifacts/pretrain_vae")
FETCHED = Path("artifacts/fetch_vae")
VAE = Path("artifacts/vae")
LATENTS = Path("artifacts/latents")
CODEBOOK = Path("artifacts/codebook")
PASS_TOKEN = Path("artifacts/gate/passed")
TOKENIZER = Path("artifacts/tokenizer")
EVALUATION = Path("artifacts/evaluation")

METRICS = Path("metrics")
PLOTS = Path("metrics/plots")

# What DVC does not see: unfinished work that a rerun picks up.
VOXELIZE_SCRATCH = Path("artifacts/.scratch/voxelize")
RESUME = Path("artifacts/.resume")
