"""`shape-tokenizer compare`: what changed between two evaluations."""

from pathlib import Path

from ..report import check_comparable, compare_rows, read_evaluation, show_changes


def compare_evaluations(old_folder: Path, new_folder: Path, rows: tuple[str, str]) -> None:
    """Print every figure's change from row `rows[0]` of the old to row `rows[1]` of the new, with its interval.

    Raises InputError where a folder holds no evaluation, or where the two were measured otherwise.
    """
    old, new = read_evaluation(old_folder), read_evaluation(new_folder)
    check_comparable(old, new)
    old_row, new_row = rows
    print(f"{old['shape'].nunique()} shapes; lengths in the [-1, 1] cube; better and worse: 0 is outside the interval")
    print(show_changes(compare_rows(old[old.row == old_row], new[new.row == new_row], seed=new.attrs["seed"])))
