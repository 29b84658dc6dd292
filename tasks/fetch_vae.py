"""VAE weights from the Hugging Face hub, one file: `python -m tasks.fetch_vae`."""

import hashlib
import re
from pathlib import Path

from model.errors import InputError
from model.files import copy_whole, whole_directory
from model.hub import local_path
from tasks.run import Settings, paths, run_stage

COMMIT = re.compile(r"(@|/blob/|/resolve/)[0-9a-f]{40}/")
IN_THE_CACHE = re.compile(r"/snapshots/([0-9a-f]{40})/")


def fetch_vae(settings: Settings) -> None:
    options = settings.fetch_vae
    file = local_path(options.source)
    check_file(file, options.source, options.sha256)
    with whole_directory(paths.FETCHED) as directory:
        copy_whole(file, directory / file.name)  # the content: in the cache it is a link
    print(f"fetch_vae: {file.name} of {options.source} in {paths.FETCHED}")


def check_file(file: Path, source: str, sha256: str | None) -> None:
    """Raises InputError unless source is one file of one commit, and the file has this hash."""
    if not file.is_file():
        raise InputError(f"fetch_vae.source: {source} is a folder; name the file of weights in it")
    with file.open("rb") as content:
        got = hashlib.file_digest(content, "sha256").hexdigest()
    if not COMMIT.search(source) or sha256 is None:
        cached = IN_THE_CACHE.search(str(file))
        commit = cached[1] if cached else "unknown"
        raise InputError(
            f"fetch_vae.source {source} with fetch_vae.sha256 {sha256 or 'null'} may be another file tomorrow; "
            f"expected hf://owner/name@commit/file and its sha256; this is commit {commit}, sha256 {got}: "
            "look at the file, then set both in params.yaml"
        )
    if got != sha256:
        raise InputError(
            f"sha256 of {source} is {got}; expected fetch_vae.sha256 {sha256}; "
            "this is not the file that was looked at: look at it before you change the hash"
        )


if __name__ == "__main__":
    run_stage("fetch_vae", fetch_vae)
