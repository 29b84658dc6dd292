"""Can the stage that follows do its work? Each begins with `python -m tasks.run.check`, before it imports torch."""

import sys
from pathlib import Path

from model.errors import InputError
from tasks.run.paths import METRICS, SDF, VAE
from tasks.run.settings import load_settings


def refuse_links() -> None:
    """Raise InputError where results would lie outside of the git repository: DVC fails on them once they are made."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)
    for place in sorted({path.parts[0] for path in (METRICS, SDF, VAE)}):
        if root is not None and not Path(place).resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"{place} is a link to {Path(place).resolve()}, and DVC records nothing outside of the git repository; "
                f"mount that at {place} (mount --bind), or make {place} a folder and keep DVC's store there: "
                f".venv/bin/dvc cache dir --local {Path(place).resolve()}"
            )


if __name__ == "__main__":
    try:
        load_settings()
        refuse_links()
    except InputError as error:
        sys.exit(str(error))
