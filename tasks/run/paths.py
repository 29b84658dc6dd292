"""Where every stage's files are, relative to the repository root. dvc.yaml names the same paths; a test compares."""

from pathlib import Path

MESHES = Path("data/meshes")
SDF = Path("data/sdf")
PRETRAINED = Path("artifacts/pretrain_vae")
FETCHED = Path("artifacts/fetch_vae")
VAE = Path("artifacts/vae")
LATENTS = Path("artifacts/latents")
CODEBOOK = Path("artifacts/codebook")
PASS_TOKEN = Path("artifacts/gate/passed")
STAGE2 = Path("artifacts/stage2")
TOKENIZER = Path("artifacts/tokenizer")
TWIN = Path("artifacts/twin")
EVALUATION = Path("artifacts/evaluation")
VALIDATION_FILE = "validation.json"  # beside trained weights: figures of each validation shape, before and after

METRICS = Path("metrics")
HEADLINE = METRICS / "headline.json"  # evaluate's, few figures: what `dvc metrics` and `dvc exp show` print
CODEBOOK_PLOTS = METRICS / "codebook"  # the gate's
PLOTS = METRICS / "plots"  # evaluate's

# What neither DVC nor git sees: seconds and megabytes, which differ from run to run, unfinished work, others' logs.
TIMINGS = Path("artifacts/timings")
VOXELIZE_SCRATCH = Path("artifacts/.scratch/voxelize")
RESUME = Path("artifacts/.resume")
TRACKING = Path("artifacts/tracking")
