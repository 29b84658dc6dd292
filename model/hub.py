"""Files and folders on the Hugging Face hub: hf://owner/name[@revision]/path, or the address of their page."""

from pathlib import Path

from .errors import InputError, first_line, is_of_environment

WEIGHT_SUFFIXES = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
PREFIXES = ("hf://", "https://huggingface.co/")


def is_hub_id(source: str | Path) -> bool:
    return str(source).startswith(PREFIXES)


def local_path(source: str | Path) -> Path:
    """Where the file or folder is on this machine; what is on the hub is fetched into the hub's cache first.

    A path that ends in a suffix of weights is a file, any other a folder, of which only weights and their config are
    fetched. Raises InputError where the id is wrong, where the folder has none, or where the network is away and the
    cache does not have it.
    """
    if not is_hub_id(source):
        return Path(source)
    from huggingface_hub import hf_hub_download, parse_hf_uri, snapshot_download  # takes long, and few need it
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HfUriError, HFValidationError

    try:
        place = parse_hf_uri(str(source))
        path = place.path_in_repo
        if Path(path).suffix in WEIGHT_SUFFIXES:
            return Path(hf_hub_download(place.id, path, repo_type=place.type, revision=place.revision))
        patterns = [f"{path}/*{suffix}".lstrip("/") for suffix in (".json", *sorted(WEIGHT_SUFFIXES))]
        root = snapshot_download(place.id, repo_type=place.type, revision=place.revision, allow_patterns=patterns)
        folder = Path(root) / path
    except (HfUriError, HFValidationError) as error:
        raise InputError(
            f"{source}: not an id of the hub ({first_line(error)}); expected hf://owner/name[@revision]/path"
        ) from error
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:  # OSError: no network, and not in the cache
        if is_of_environment(error):
            raise
        raise InputError(
            f"{source}: neither in the hub's cache nor to be fetched ({first_line(error)}); check the name and the "
            "network, or fetch it on another machine and name the file's path here"
        ) from error
    if not folder.is_dir():
        raise InputError(f"{source}: no folder with files of weights; name the folder or the file as the hub does")
    return folder
