"""Which shapes are trained on, and which are held out.

A split that the user brings counts: `split.csv` in the folder of meshes, or folders train, val and test in it. Else the
split of a shape follows from its surface alone, so that neither another file in the folder, nor another format, scale,
position or orientation moves it: a shape that is held out once stays so, and its copies with it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from model.errors import InputError, is_of_environment
from tasks.shards import SPLITS

SPLIT_FILE = "split.csv"
STEP = 0.002  # to which invariants are rounded; they are numbers of the order of 1
EDGE = 2e-6  # nearer than this to where rounding changes, formats of few digits may disagree


class SurfaceHash(NamedTuple):
    digest: str  # 16 hexadecimal digits
    on_edge: bool  # whether a change in the sixth digit, as between two file formats, might give another digest


def surface_hash(vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]) -> SurfaceHash:
    """A hash of the surface that scale, position, turns by 90 degrees, mirroring and the order of faces leave alone."""
    steps = invariants(vertices, faces) / STEP
    digest = hashlib.sha256(" ".join(str(int(step)) for step in steps.round()).encode()).hexdigest()
    return SurfaceHash(digest[:16], bool((np.abs(steps % 1 - 0.5) < EDGE / STEP).any()))


def invariants(
    vertices: Float[np.ndarray, "num_vertices 3"], faces: Int[np.ndarray, "num_faces 3"]
) -> Float[np.ndarray, "5"]:
    """Of a surface in units of the longest side of its bounding box: the root of its area, the root second moments
    along the three axes about its centroid, in ascending order, and the mean distance of the faces from the centroid.

    The moments are those of the surface with even density: over a triangle a, b, c of area A with centroid m the
    integral of x x^T is A / 12 (a a^T + b b^T + c c^T + 9 m m^T).
    """
    corners = np.asarray(vertices, np.float64)[faces]
    size = np.ptp(corners.reshape(-1, 3), axis=0).max()
    corners = (corners - corners.reshape(-1, 3).mean(0)) / size
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    area = areas.sum()
    centers = corners.mean(1)
    centroid = areas @ centers / area
    centers, corners = centers - centroid, corners - centroid
    moments = areas @ ((corners**2).sum(1) + 9 * centers**2) / (12 * area)
    radius = areas @ np.linalg.norm(centers, axis=1) / area
    return np.array([np.sqrt(area), *np.sort(np.sqrt(moments)), radius])


def split_of(digest: str, *, val_share: float, test_share: float) -> str:
    """The split of a shape by the hash of its surface."""
    position = int(digest[:15], 16) / 16**15
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def splits_brought(folder: Path, files: Mapping[str, Path]) -> dict[str, str] | None:
    """The split of each mesh by its name, where the user says it, else None.

    Folders say it where all meshes are below train, val and test, and two of these are there at least. Raises
    InputError where split.csv is damaged or lacks a mesh, and where a split is left without meshes.
    """
    table = folder / SPLIT_FILE
    if table.is_file():
        splits, remedy = _read_table(table, files), f"remove {SPLIT_FILE}"
    else:
        splits, remedy = {name: path.relative_to(folder).parts[0] for name, path in files.items()}, "rename the folders"
        if not set(splits.values()) <= set(SPLITS) or sum((folder / split).is_dir() for split in SPLITS) < 2:
            return None
    for split in SPLITS:
        if split not in splits.values():
            raise InputError(
                f"{table if table.is_file() else folder / split} has no mesh of the {split} split, of {len(files)} in "
                f"all; expected some in each of {', '.join(SPLITS)}; add some, or {remedy} to have splits drawn"
            )
    return splits


def _read_table(table: Path, files: Mapping[str, Path]) -> dict[str, str]:
    try:
        rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        if is_of_environment(error):
            raise
        raise InputError(f"{table} can't be read ({error}); expected CSV with columns name and split") from error
    if not {"name", "split"} <= set(rows.columns):
        raise InputError(f"{table} has columns {', '.join(rows.columns)}; expected name and split; rename them")
    wrong = rows[~rows["split"].isin(SPLITS)]
    if len(wrong):
        name, split = wrong.iloc[0][["name", "split"]]
        raise InputError(f"{table}: split of {name} is {split!r}; expected {', '.join(SPLITS)}; correct it")
    twice = rows["name"][rows["name"].duplicated()]
    if len(twice):
        raise InputError(f"{table} names {twice.iloc[0]} twice; expected each mesh once; remove a line")
    known = dict(zip(rows["name"], rows["split"], strict=True))
    missing = [name for name in files if name not in known]
    if missing:
        raise InputError(
            f"{table} lacks {len(missing)} of {len(files)} meshes, {missing[0]} for one; expected the name of each, "
            "its path below the folder without the suffix; add them, or remove the file to have splits drawn"
        )
    return {name: known[name] for name in files}
