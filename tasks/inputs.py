"""Can DVC read the folder of meshes? `python -m tasks.inputs`, which `make repro` and the flow do first.

DVC hashes what a stage depends on before it runs anything: it waits for ever on a named pipe and fails without a name
on a link to nothing. The stage itself would list both as rejected.
"""

import sys

from model.errors import InputError, printable
from model.meshes import irregular_files
from tasks.run import ParameterError, load_settings

_SHOWN = 10


def check_inputs() -> None:
    """Raise InputError naming what in voxelize.meshes is no file that can be read."""
    folder = load_settings().voxelize.meshes
    found = [f"{printable(path)}: {reason}" for path, reason in irregular_files(folder).items()]
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise InputError(
            f"DVC can't read {len(found)} of what is in {folder} (voxelize.meshes): {'; '.join(found[:_SHOWN])}{more}"
        )


if __name__ == "__main__":
    try:
        check_inputs()
    except (InputError, ParameterError) as error:
        sys.exit(str(error))
