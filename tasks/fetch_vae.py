"""VAE weights from the Hugging Face hub: `python -m tasks.fetch_vae`."""

import shutil

from model.files import whole_directory
from model.hub import local_path
from tasks.run import FETCHED, Settings, run_stage


def fetch_vae(settings: Settings) -> None:
    source = settings.fetch_vae.source
    found = local_path(source)
    files = [found] if found.is_file() else sorted(file for file in found.iterdir() if file.is_file())
    with whole_directory(FETCHED) as directory:
        for file in files:
            shutil.copyfile(file, directory / file.name)  # the content: in the cache these are links
    print(f"fetch_vae: {', '.join(file.name for file in files)} of {source} in {FETCHED}")


if __name__ == "__main__":
    run_stage("fetch_vae", fetch_vae)
