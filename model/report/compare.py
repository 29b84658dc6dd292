"""What changed between two evaluations, shape by shape.

Intervals of two means overlap even where nearly every shape improves, because shapes differ more among themselves than
between runs; the difference of each shape from itself does not have that noise.
"""

from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..metrics import Change, summarise_change
from ..tables import metadata_of, read_table
from .figures import Figure, figures_of

PER_SHAPE = "per_shape.parquet"
AGAINST = ("stage1", "vae", "twin")  # the rows that stage 2 is held against
CONDITIONS = ("resolution", "num_points", "seed")  # must be equal for two runs' figures to be comparable


def compare_rows(old: pd.DataFrame, new: pd.DataFrame, *, seed: int) -> list[tuple[Figure, Change]]:
    """Every figure that both have, over the same shapes: one row of each per-shape table."""
    old, new = old.set_index("shape"), new.set_index("shape")
    changes = []
    for figure in figures_of(old.columns.intersection(new.columns)):
        values = ([None if pd.isna(v) else float(v) for v in run.loc[old.index, figure.column]] for run in (old, new))
        change = summarise_change(*values, seed=seed)
        if change is not None:
            changes.append((figure, change))
    return changes


def compare_within(table: pd.DataFrame, *, seed: int) -> dict[str, list[tuple[Figure, Change]]]:
    """What stage 2 changes against other rows of the same table, by row: stage 1, the VAE, the twin where it is."""
    rows = dict(iter(table.groupby("row")))
    return {row: compare_rows(rows[row], rows["stage2"], seed=seed) for row in AGAINST if {row, "stage2"} <= {*rows}}


def verdict(figure: Figure, change: Change) -> str:
    """better or worse where the interval of the change leaves out 0, else nothing."""
    if figure.smaller_is_better is None or change.ci_low <= 0 <= change.ci_high:
        return ""
    return "better" if (change.mean < 0) == figure.smaller_is_better else "worse"


def num_better(figure: Figure, change: Change) -> int:
    return change.num_lower if figure.smaller_is_better else change.num_higher


def read_evaluation(path: Path) -> pd.DataFrame:
    """The per-shape table of an evaluation, its conditions in `attrs`. Raises InputError naming what can't be read."""
    file = path / PER_SHAPE if path.is_dir() else path
    table = read_table(file, remedy="give a folder that evaluate wrote, or evaluate again", ours=False)
    metadata = metadata_of(table)
    try:
        conditions = {key: int(metadata[key]) for key in CONDITIONS}
    except KeyError as error:
        raise InputError(f"{file} does not say {error}; it is no table of evaluate, or an old one") from error
    frame = table.to_pandas()
    frame.attrs = conditions
    return frame


def check_comparable(old: pd.DataFrame, new: pd.DataFrame) -> None:
    """Raises InputError where the two were measured on other shapes or in another way."""
    for key in CONDITIONS:
        if old.attrs[key] != new.attrs[key]:
            raise InputError(
                f"{key} is {old.attrs[key]} in the old run and {new.attrs[key]} in the new one; figures depend "
                f"on it: compare evaluations of the same {key}"
            )
    differing = set(old["shape"]) ^ set(new["shape"])
    if differing:
        raise InputError(
            f"{len(differing)} shapes are in one run only, {min(differing)} for one; evaluate both on the same split"
        )


def show_changes(changes: list[tuple[Figure, Change]]) -> str:
    lines = [f"{'':24} {'old':>10} {'new':>10} {'change':>11}   {'95 % interval':23} {'better':>9}"]
    for figure, change in changes:
        interval = f"{figure.show(change.ci_low, signed=True)} to {figure.show(change.ci_high, signed=True)}"
        better = "" if figure.smaller_is_better is None else f"{num_better(figure, change)} of {change.num_shapes}"
        means = f"{figure.show(change.old_mean):>10} {figure.show(change.new_mean):>10}"
        difference = f"{figure.show(change.mean, signed=True):>11}   {interval:23} {better:>9}"
        lines.append(f"{figure.label:24} {means} {difference}  {verdict(figure, change)}".rstrip())
    return "\n".join(lines)
