"""`shape-tokenizer compare`: what changed between two evaluations."""

from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..report import ROW_TITLES, check_comparable, compare_rows, compare_within, read_evaluation, show_changes


def compare_evaluations(old_folder: Path, new_folder: Path, rows: tuple[str, str]) -> None:
    """Print every figure's change from row `rows[0]` of the old to row `rows[1]` of the new, with its interval.

    Raises InputError where a folder holds no evaluation, or where the two were measured otherwise.
    """
    old, new = read_evaluation(old_folder), read_evaluation(new_folder)
    check_comparable(old, new)
    sides = []
    for folder, table, row in ((old_folder, old, rows[0]), (new_folder, new, rows[1])):
        if row not in set(table.row):
            there = ", ".join(table.row.unique())
            raise InputError(f"{folder} has no row {row}; expected one of its own, {there}; choose by --rows")
        sides.append(table[table.row == row])
    _print_head(old)
    print(show_changes(compare_rows(*sides, seed=new.attrs["seed"])))


def compare_rows_of(folder: Path) -> None:
    """Print what stage 2 changes against the other rows of one evaluation. Raises InputError where there is none."""
    evaluation = read_evaluation(folder)
    against = compare_within(evaluation, seed=evaluation.attrs["seed"])
    if not against:
        raise InputError(f"{folder} has nothing to hold stage 2 against; name another evaluation beside it")
    _print_head(evaluation)
    for row, changes in against.items():
        print(f"\nfrom {ROW_TITLES[row]} to {ROW_TITLES['stage2']}\n{show_changes(changes)}")


def _print_head(evaluation: pd.DataFrame) -> None:
    shapes = evaluation["shape"].nunique()
    print(f"{shapes} shapes; lengths in the [-1, 1] cube; better and worse: 0 is outside the interval")
