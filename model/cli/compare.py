"""What changed between two evaluations, shape by shape:

.venv/bin/dvc get . artifacts/evaluation --rev HEAD~1 -o /tmp/before
.venv/bin/python -m model.cli.compare /tmp/before artifacts/evaluation
.venv/bin/python -m model.cli.compare artifacts/evaluation artifacts/evaluation --rows stage1 stage2
"""

import argparse
import sys
from pathlib import Path

from ..errors import InputError
from ..report import ROW_TITLES, check_comparable, compare_rows, read_evaluation, show_changes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.cli.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path, help="folder of an evaluation")
    parser.add_argument("new", type=Path, help="another, or the same with other rows")
    parser.add_argument("--rows", nargs=2, choices=ROW_TITLES, default=("stage2", "stage2"), metavar=("OLD", "NEW"))
    arguments = parser.parse_args()
    try:
        old, new = read_evaluation(arguments.old), read_evaluation(arguments.new)
        check_comparable(old, new)
    except InputError as error:
        sys.exit(f"compare: {error}")
    old_row, new_row = arguments.rows
    print(f"{old['shape'].nunique()} shapes; lengths in the [-1, 1] cube; better and worse: 0 is outside the interval")
    print(show_changes(compare_rows(old[old.row == old_row], new[new.row == new_row], seed=new.attrs["seed"])))


if __name__ == "__main__":
    main()
