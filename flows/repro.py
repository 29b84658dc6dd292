"""`dvc repro --single-item STAGE`, with how it ended in a file: `python flows/repro.py END STAGE [--force] [--remote]`.

DVC's command line says how a stage ended in words alone, among those of the stage, where a mesh's name may stand too.
Here DVC is asked: END is JSON with what became of the stage (`outcome`), or with its command's exit code (`code`), or
with `busy`, where another DVC process works with the same files.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException, ReproductionError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.stage.exceptions import StageCmdFailedError

EXIT_CODE = re.compile(r", exited with (-?\d+)$")  # of StageCmdFailedError, which has it in its message only


def repro(stage: str, *, force: bool, remote: bool) -> dict[str, Any]:
    """Bring one stage up to date, as DVC's command line does: how it ended."""
    commands: list[str] = []
    sys.addaudithook(lambda event, arguments: commands.extend(_started(event, arguments)))
    with Repo(_wait_for_lock=True) as repo:
        (wanted,) = repo.stage.collect(stage)
        try:
            done = repo.reproduce([stage], single_item=True, force=force, pull=remote, allow_missing=remote)
        except (ReproductionError, LockError) as error:
            print(f"ERROR: {': '.join(str(part) for part in _chain(error))}", file=sys.stderr)
            return _failure(error)
    if not done:
        return {"outcome": "unchanged"}
    ran = set(wanted.cmd.splitlines()) & set(commands)  # else its outputs came from DVC's cache: an earlier run's
    return {"outcome": "ran" if ran else "restored"}


def _started(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """The shell commands of an audit event."""
    words = arguments[1] if event == "subprocess.Popen" else []
    return [words[-1]] if len(words) > 1 and words[-2] == "-c" else []


def _failure(error: DvcException) -> dict[str, Any]:
    for part in _chain(error):
        if isinstance(part, LockError):
            return {"busy": True}
        if isinstance(part, StageCmdFailedError):
            code = EXIT_CODE.search(str(part))
            assert code is not None, part
            return {"code": int(code[1])}
    return {}


def _chain(error: BaseException | None) -> list[BaseException]:
    return [error, *_chain(error.__cause__)] if error else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("end", type=Path)
    parser.add_argument("stage")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--remote", action="store_true")
    options = parser.parse_args()
    end = repro(options.stage, force=options.force, remote=options.remote)
    options.end.write_text(json.dumps(end))
    sys.exit(0 if "outcome" in end else 1)
