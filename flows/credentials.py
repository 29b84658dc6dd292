"""Who may use this checkout's Prefect server: whoever has the secret of prefect.toml, a file that only its owner reads.

`python -m flows.credentials` makes the file where there is none, as `make serve` does. Prefect merges it with
[tool.prefect] of pyproject.toml in every command that is run in the root of the checkout, so that server, worker,
`prefect deploy` and the command line have the secret without it standing in a command or in what git keeps.
"""

import json
import os
import secrets
import sys
import tomllib
from pathlib import Path
from typing import Any

from model.errors import InputError

SETTINGS = Path("prefect.toml")
HOME = Path(".prefect")  # Prefect's own folder: database, profiles; not ~/.prefect, which every checkout would share
OF_OTHERS = 0o077

TEXT = """\
# This checkout's own, made by `python -m flows.credentials`; git ignores it, and only its owner may read it.
# It goes together with [tool.prefect] in pyproject.toml. Without it a new one is made, with another secret.
home = {home}
profiles_path = {profiles}
api.auth_string = {secret}
server.api.auth_string = {secret}
"""


def ensure_credentials() -> None:
    """Leave a prefect.toml with a secret that only its owner can read: the one that is there, or a new one.

    Call it before Prefect is imported, which reads the file once. Raises InputError for a file that others can read,
    that has no secret, or that was copied here from another checkout.
    """
    HOME.mkdir(mode=0o700, exist_ok=True)
    if not SETTINGS.exists():
        _write(SETTINGS, _new_settings())
    _check(SETTINGS)


def _new_settings() -> str:
    home = HOME.absolute()
    secret = f"prefect:{secrets.token_urlsafe(32)}"
    values = {"home": str(home), "profiles": str(home / "profiles.toml"), "secret": secret}
    return TEXT.format(**{key: json.dumps(value) for key, value in values.items()})


def _write(path: Path, text: str) -> None:
    """Whole, and never readable for others; another process's file, where one was faster, is left as it is."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def _check(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & OF_OTHERS:
        raise InputError(
            f"{path} holds a secret and has mode {mode:o}, so that others read it; expected 600: chmod 600 {path}, "
            "or remove it, if somebody may have read it, and it is made anew"
        )
    try:
        values = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML ({error}); mend it, or remove it and it is made anew") from error
    for key in ("api.auth_string", "server.api.auth_string"):
        if not isinstance(found := _value(values, key), str) or not found.strip():
            raise InputError(
                f"{path} has no {key}, without which whoever reaches the server runs commands on this machine; "
                "add it, or remove the file and it is made anew"
            )
    if (home := _value(values, "home")) != str(HOME.absolute()):
        raise InputError(
            f"{path}: home is {home}; expected {HOME.absolute()}, as the file is each checkout's own; "
            "correct it, or remove the file and it is made anew"
        )


def _value(values: dict[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


if __name__ == "__main__":
    try:
        ensure_credentials()
    except InputError as error:
        sys.exit(str(error))
    print(f"{SETTINGS} holds the secret; Prefect's commands read it when they are run in this folder")
