"""The arguments, help and exit codes of `shape-tokenizer`; what is heavy is imported where a command's work begins."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import INTERRUPTED, hear_interrupts, sentence_of, skip_last_collection

if TYPE_CHECKING:
    from ..checkpoint import Layout

PROGRAM = "shape-tokenizer"
FORMATS = ("ply", "glb", "obj")
NPZ, PARQUET = "npz", "parquet"
LAYOUTS = ("published", "spconv")
ROWS = ("reference", "floor", "vae", "twin", "stage1", "stage2")
EXPORTED = (".ckpt", ".safetensors")
TOKENIZER_VARIABLE = "SHAPE_TOKENIZER"
SOME_FAILED = 1
LARGEST_LIMIT = 1_000_000  # seconds or GB

# \b keeps click from filling the lines of the paragraph that follows it.
EXAMPLES = """\
\b
Examples:
  shape-tokenizer encode meshes/ --out tokens.jsonl      a line of integers for each mesh, for a language model
  shape-tokenizer encode chair.glb table.stl --out t     t/chair.npz and t/table.npz
  shape-tokenizer encode meshes/ --out t --format parquet   a data set, in shards; run it again and it goes on
  shape-tokenizer decode tokens.jsonl --out decoded      decoded/NAME.ply, in the frame of each original
  shape-tokenizer decode samples.jsonl --format glb      what a model wrote: {"tokens": [...]} a line will do

--tokenizer is a folder, such as artifacts/tokenizer, or hf://owner/name[@revision] on the Hugging Face hub.

\b
Exit code: 0, all done; 1, some could not be used and are listed on stderr; 2, wrong arguments.
"""
COMPLETIONS = """\
\b
Completions in bash; zsh and fish are the same with zsh_source and fish_source:
  eval "$(_SHAPE_TOKENIZER_COMPLETE=bash_source shape-tokenizer)"
"""
EXPORT_NOTES = """\
The original network loads the result of --layout published as it loads its own: the key 'vae' holds the state_dict.
With the suffix .safetensors the file is the bare state_dict.

\b
Example:
  shape-tokenizer export-vae artifacts/tokenizer vae.ckpt
"""
EVALUATE_EXAMPLES = """\
\b
Examples:
  shape-tokenizer evaluate artifacts/tokenizer --meshes meshes/ --out mine
  shape-tokenizer evaluate hf://owner/name --meshes meshes/ --out theirs
  shape-tokenizer compare theirs mine                    what changed, shape by shape, with 95 % intervals
"""
COMPARE_EXAMPLES = """\
\b
Examples:
  dvc get . artifacts/evaluation --rev HEAD~1 -o /tmp/before
  shape-tokenizer compare /tmp/before artifacts/evaluation
  shape-tokenizer compare artifacts/evaluation           stage 2 against the other rows of one evaluation
  shape-tokenizer compare artifacts/evaluation --rows floor vae
"""


class _Commands(click.Group):
    """Ends the program: with one sentence where something cannot be used, and with the exit codes that --help lists."""

    def invoke(self, ctx: click.Context) -> None:
        """Each command returns how many of its inputs could not be used, or None where it has but one."""
        try:
            num_failed = super().invoke(ctx)
        except BrokenPipeError:
            raise  # click's: the reader of stdout has gone
        except Exception as error:
            if (told := sentence_of(error, again="command")) is None:
                raise
            sys.exit(f"{PROGRAM}: {told}")
        except KeyboardInterrupt:
            print(f"{PROGRAM}: interrupted; what is written so far is whole", file=sys.stderr)
            sys.exit(INTERRUPTED)
        ctx.exit(SOME_FAILED if num_failed else 0)


def main(arguments: list[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process. Raises SystemExit with the exit code."""
    hear_interrupts()
    skip_last_collection()
    commands.main(arguments, prog_name=PROGRAM)


@click.group(
    cls=_Commands,
    epilog=f"{EXAMPLES}\n{COMPLETIONS}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True},
)
def commands() -> None:
    """Meshes to tokens and back."""


def _path(metavar: str) -> dict[str, Any]:
    """A file or folder. Whether it is there is the command's to find out: one that is missing does not end a batch."""
    return {"type": click.Path(path_type=Path), "metavar": metavar}


def _folder(default: str) -> Any:
    """--out, a folder to be made; what is a file already is refused before any work is done."""
    return click.option("--out", default=default, type=click.Path(path_type=Path, file_okay=False), metavar="FOLDER")


_tokenizer = click.option(
    "--tokenizer",
    type=click.Path(),
    metavar="FOLDER",
    envvar=TOKENIZER_VARIABLE,
    show_envvar=True,
    help="Folder or hf://owner/name; without it the one that comes with the library.",
)
_device = click.option(
    "--device", metavar="NAME", help="cpu, cuda, cuda:1 ...  [default: cuda where there is one]", show_default=False
)


def _limit(_: click.Context, __: click.Parameter, value: float) -> float:
    """Timers and the system's limits take no other numbers."""
    if not 0 < value <= LARGEST_LIMIT:
        raise click.BadParameter(f"{value:g}; expected a number above 0 and at most {LARGEST_LIMIT:,}")
    return value


_max_seconds = click.option(
    "--max-seconds",
    type=float,
    default=600,
    callback=_limit,
    metavar="SECONDS",
    help="To read and voxelize one mesh.",
)
_max_memory_gb = click.option(
    "--max-memory-gb", type=float, default=3.0, callback=_limit, metavar="GB", help="For the same."
)


@commands.command(epilog=EXAMPLES, short_help="Mesh files to tokens.")
@click.argument("meshes", nargs=-1, required=True, **_path("MESH_OR_FOLDER..."))
@click.option(
    "--out",
    default="tokens.jsonl",
    help="FILE.jsonl: a flat sequence a line; FILE.parquet: a row a mesh; else a folder of npz files.",
    **_path("PATH"),
)
@click.option(
    "--format",
    "folder_format",
    type=click.Choice((NPZ, PARQUET)),
    default=NPZ,
    help="Of a folder. parquet is a data set: shards of flat sequences, to which a run adds what is not there yet.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Of --format parquet: list the shapes whose sequence is longer, in OUT_longer_than_N.csv; they stay in.",
)
@click.option("--dask", metavar="tcp://HOST:PORT", help="Of --format parquet: read and voxelize on this Dask cluster.")
@_max_seconds
@_max_memory_gb
@_tokenizer
@_device
def encode(
    meshes: tuple[Path, ...],
    out: Path,
    folder_format: str,
    max_tokens: int | None,
    dask: str | None,
    max_seconds: float,
    max_memory_gb: float,
    tokenizer: str | None,
    device: str | None,
) -> int:
    """Mesh files (.obj, .stl, .ply, .glb, .gltf, .off), and folders of them at any depth, to tokens."""
    from ..jobs import Limits
    from .dataset import encode_dataset
    from .encode import encode_files

    limits = Limits(max_seconds, max_memory_gb)
    if folder_format == PARQUET:
        return encode_dataset(
            meshes, out, limits=limits, tokenizer=tokenizer, device=device, dask_scheduler=dask, max_tokens=max_tokens
        )
    if dask or max_tokens:
        raise click.UsageError(f"{'--dask' if dask else '--max-tokens'} needs --format parquet")
    return encode_files(meshes, out, limits=limits, tokenizer=tokenizer, device=device)


@commands.command(epilog=EXAMPLES, short_help="Tokens to mesh files.")
@click.argument("tokens", nargs=-1, required=True, **_path("TOKENS_OR_FOLDER..."))
@_folder("decoded")
@click.option("--format", "mesh_format", type=click.Choice(FORMATS), default=FORMATS[0], help="Of the meshes.")
@_tokenizer
@_device
def decode(tokens: tuple[Path, ...], out: Path, mesh_format: str, tokenizer: str | None, device: str | None) -> int:
    """Tokens (.jsonl, .parquet, .npz, and folders of them) to mesh files."""
    from .decode import decode_files

    return decode_files(tokens, out, mesh_format=mesh_format, tokenizer=tokenizer, device=device)


@commands.command(epilog=EVALUATE_EXAMPLES, short_help="What a tokenizer loses of your meshes.")
@click.argument("tokenizer", type=click.Path(), metavar="[TOKENIZER]", required=False, envvar=TOKENIZER_VARIABLE)
@click.option("--meshes", multiple=True, required=True, help="May be given again.", **_path("MESH_OR_FOLDER"))
@_folder("evaluation")
@click.option("--num-points", type=click.IntRange(min=1), default=100_000, help="On each surface.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the points.")
@_max_seconds
@_max_memory_gb
@_device
def evaluate(
    tokenizer: str | None,
    meshes: tuple[Path, ...],
    out: Path,
    num_points: int,
    seed: int,
    max_seconds: float,
    max_memory_gb: float,
    device: str | None,
) -> int:
    """Distances, IoUs, use of the codes and pictures of meshes that went through a tokenizer and back.

    TOKENIZER is a folder or hf://owner/name; without it the one that SHAPE_TOKENIZER names in the environment is meant,
    or else the one that comes with the library. Into the folder go report.html, evaluate.json with the means, and
    per_shape.parquet, which compare reads.
    """
    from ..jobs import Limits
    from .evaluate import evaluate_tokenizer

    limits = Limits(max_seconds, max_memory_gb)
    return evaluate_tokenizer(tokenizer, meshes, out, num_points=num_points, seed=seed, limits=limits, device=device)


@commands.command("export-vae", epilog=EXPORT_NOTES, short_help="A VAE for users of the original network.")
@click.argument("source", type=click.Path(), metavar="SOURCE")
@click.argument("target", **_path("TARGET"))
@click.option("--layout", type=click.Choice(LAYOUTS), default=LAYOUTS[0])
def export(source: str, target: Path, layout: "Layout") -> None:
    """Write the encoder and the decoder of a VAE or of a trained tokenizer in another layout.

    SOURCE is a file or folder of weights, or hf://owner/name/path; TARGET the file to write, .ckpt or .safetensors.
    """
    if target.suffix not in EXPORTED:
        raise click.BadParameter(f"{target}; expected a name that ends in {' or '.join(EXPORTED)}", param_hint="TARGET")
    from ..checkpoint import export_vae, load_vae

    export_vae(load_vae(source), target, layout=layout)
    print(f"{target}: the VAE of {source} in the {layout} layout")


@commands.command(epilog=COMPARE_EXAMPLES, short_help="What changed between two evaluations.")
@click.argument("old", **_path("OLD"))
@click.argument("new", required=False, **_path("[NEW]"))
@click.option("--rows", nargs=2, type=click.Choice(ROWS), help="Of OLD and of NEW.  [default: stage2 stage2]")
def compare(old: Path, new: Path | None, rows: tuple[str, str] | None) -> None:
    """What changed between two evaluations, shape by shape.

    OLD is the folder of an evaluation; NEW another, with --rows OLD itself if it is left out. Without both, what stage
    2 changes against stage 1, the VAE and, where there is one, its unquantised twin.
    """
    from .compare import compare_evaluations, compare_rows_of

    if new is None and rows is None:
        compare_rows_of(old)
    else:
        compare_evaluations(old, new or old, rows or ("stage2", "stage2"))
