"""How a stage starts and ends: its settings, its paths, its lock, its exit code.

Imports no torch: DVC's check of params.yaml and the flow read it.
"""

from tasks.run import paths
from tasks.run.code import code_version
from tasks.run.settings import (
    PARAMS_FILE,
    Codebook,
    CodebookThresholds,
    FinalGate,
    ParameterError,
    PretrainVae,
    Section,
    Settings,
    ShapeTraining,
    Stage1,
    Stage2,
    Tracking,
    Training,
    Voxelize,
    load_settings,
)
from tasks.run.stage import (
    ALREADY_RUNNING,
    REFUSED,
    AlreadyRunningError,
    RefusedError,
    only_one,
    run_stage,
    write_metrics,
)
