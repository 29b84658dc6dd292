"""The names, units and meanings of evaluate's figures, and which way is better: one list for the report and compare."""

from collections.abc import Collection
from typing import NamedTuple

import pandas as pd

ROW_TITLES = {  # of evaluate's results; the first is the truth against a second sample of itself
    "reference": "truth, sampled twice",
    "floor": "voxel grid (floor)",
    "vae": "VAE",
    "twin": "unquantised twin",  # of stage 2, where it was trained
    "stage1": "stage 1",
    "stage2": "stage 2",
}
NOTHING = "–"


def title_of_codes(name: str) -> str:
    """Of stage1 or stage2, or of a further level of their codes, as in stage2_level2."""
    stage, _, level = name.partition("_level")
    title = ROW_TITLES.get(stage, stage)
    return f"{title}, level {level}" if level else title


class Figure(NamedTuple):
    column: str  # of the per-shape table
    label: str
    smaller_is_better: bool | None  # None: neither is
    meaning: str
    digits: int = 3
    percent: bool = False

    def show(self, value: float | None, *, signed: bool = False) -> str:
        """A value as text; `signed` for a change, which has a plus where it is one."""
        if value is None or pd.isna(value):
            return NOTHING
        sign = "+" if signed else ""
        return f"{100 * value:{sign}.{self.digits}f} %" if self.percent else f"{value:{sign}.{self.digits}f}"


_LENGTH = "In units of the [-1, 1] cube that the true mesh is normalised into."


def rows_of(table: pd.DataFrame) -> list[str]:
    """Those that a per-shape table has, in their order."""
    measured = set(table["row"])
    return [row for row in ROW_TITLES if row in measured]


def figures_of(columns: Collection[str]) -> list[Figure]:
    """Those that a per-shape table has, in the order in which people want them."""
    thresholds = [column.removeprefix("fscore_") for column in columns if column.startswith("fscore_")]
    figures = [
        Figure("cd_l1", "CD-L1", True, f"Chamfer distance: half the sum of the next two. {_LENGTH}", 5),
        Figure("accuracy_l1", "of it: result to truth", True, "Mean distance of the result's points to the truth.", 5),
        Figure("completeness_l1", "of it: truth to result", True, "Mean distance of the truth's points to it.", 5),
        Figure("cd_l2", "CD-L2", True, "Sum of both mean squared distances.", 6),
    ]
    for t in thresholds:
        meaning = f"Harmonic mean of precision and recall: the shares of points nearer than {t} to the other surface."
        figures.append(Figure(f"fscore_{t}", f"F at {t}", False, meaning))
    figures += [
        Figure("normal_consistency", "normals", False, "Mean cosine between the normals of nearest points."),
        Figure("normal_consistency_absolute", "normals, unsigned", False, "The same where winding means nothing."),
        Figure("spurious_area", "spurious area", True, "Area farther than 2 voxels from the truth.", 2, True),
        Figure("volume_iou", "V-IoU", False, "Overlap of the solids, by the field's sign; closed truths.", 2, True),
        Figure("surface_iou", "S-IoU", False, "The same, counted near the true surface only.", 2, True),
        Figure("open_volume_iou", "V-IoU, open truths", False, "Open true meshes that became solids.", 2, True),
        Figure("open_surface_iou", "S-IoU, open truths", False, "The same, near the true surface only.", 2, True),
        Figure("sdf_l1", "SDF error", True, "Mean error of the field on the true band, in truncation distances.", 4),
        Figure("sign_errors", "sign errors", True, "Share of the true band on the wrong side.", 2, True),
        Figure("band_precision", "voxel precision", False, "True ones among those it puts near the surface.", 2, True),
        Figure("band_recall", "voxel recall", False, "Of the voxels near the surface, those it finds.", 2, True),
        Figure("num_tokens", "tokens", None, "For each occupied 8³ brick one of every level of codes.", 0),
        Figure("bits", "bits", None, "Log2 of the number of codes, over all tokens; their places are not counted.", 0),
    ]
    return [figure for figure in figures if figure.column in columns]


COSTS = [
    Figure("encode_ms", "encode, ms", True, "From voxels to latents or tokens, without voxelising.", 0),
    Figure("decode_ms", "decode, ms", True, "From latents or tokens to a mesh.", 0),
    Figure("memory_mb", "memory, MB", True, "Peak: of the GPU's tensors, or of the process on a CPU.", 0),
]
