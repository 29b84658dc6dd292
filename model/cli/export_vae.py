"""A VAE for users of the original network: `python -m model.cli.export_vae artifacts/tokenizer vae.ckpt`."""

import argparse
import sys
from pathlib import Path

from ..checkpoint import export_vae, load_vae
from ..errors import InputError


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m model.cli.export_vae",
        description="Write the encoder and the decoder of a VAE or of a trained tokenizer in another layout.",
        epilog="The original network loads the result of --layout published as it loads its own: the key 'vae' holds "
        "the state_dict. With the suffix .safetensors the file is the bare state_dict.",
    )
    parser.add_argument("source", help="a file or folder of weights, or hf://owner/name/path")
    parser.add_argument("target", type=Path, help="the file to write, .ckpt or .safetensors")
    parser.add_argument("--layout", choices=["published", "spconv"], default="published")
    options = parser.parse_args(arguments)
    try:
        options.target.parent.mkdir(parents=True, exist_ok=True)
        export_vae(load_vae(options.source), options.target, layout=options.layout)
    except (InputError, OSError) as error:
        sys.exit(f"export_vae: {error}")
    print(f"{options.target}: the VAE of {options.source} in the {options.layout} layout")


if __name__ == "__main__":
    main()
