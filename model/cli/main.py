"""`shape-tokenizer`: mesh files to tokens and back, on the command line."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from ..errors import INTERRUPTED, InputError
from ..files import write_whole
from ..jobs import GB, Failure, Limits, run_all
from ..meshes import SUFFIXES, find_meshes, load_mesh, memory_to_load, printable
from ..progress import track
from ..tokens import Found, check_suffix, count_shapes, inside, read_tokens, write_tokens

if TYPE_CHECKING:  # these bring torch along, and --help should not wait for it
    from ..sdf import SparseSDF
    from ..tokenizer import ShapeTokenizer
    from ..tokens import Tokens

TOKENIZER = Path("artifacts/tokenizer")  # where stage 2 leaves it
FORMATS = ("ply", "glb", "obj")
SOME_FAILED = 1

EXAMPLES = f"""\
examples:
  shape-tokenizer encode meshes/ --out tokens.jsonl      a line of integers for each mesh, for a language model
  shape-tokenizer encode chair.glb table.stl --out t     t/chair.npz and t/table.npz
  shape-tokenizer decode tokens.jsonl --out decoded      decoded/NAME.ply, in the frame of each original
  shape-tokenizer decode samples.jsonl --format glb      what a model wrote: {{"tokens": [...]}} a line will do

--tokenizer is a folder, or hf://owner/name[@revision] on the Hugging Face hub; the default is {TOKENIZER}.
Exit code: 0, all done; 1, some could not be used and are listed on stderr; 2, wrong arguments.
"""


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        num_failed = options.run(options)
    except InputError as error:
        sys.exit(f"shape-tokenizer: {error}")
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        sys.exit(f"shape-tokenizer: {error.strerror or error}{file}; mend it and run the command again")
    except KeyboardInterrupt:
        print("shape-tokenizer: interrupted; what is written so far is whole", file=sys.stderr)
        sys.exit(INTERRUPTED)
    sys.exit(SOME_FAILED if num_failed else 0)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "shape-tokenizer", description="Meshes to tokens and back.", epilog=EXAMPLES, formatter_class=layout
    )
    commands = parser.add_subparsers(required=True, metavar="encode | decode")

    encode = commands.add_parser(
        "encode",
        help="mesh files to tokens",
        description=f"Mesh files ({', '.join(SUFFIXES)}), and folders of them at any depth, to tokens.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    encode.add_argument("meshes", nargs="+", type=Path, metavar="MESH_OR_FOLDER")
    encode.add_argument(
        "--out",
        type=Path,
        default=Path("tokens.jsonl"),
        help="FILE.jsonl: a flat sequence a line; FILE.parquet: a row a mesh; else a folder of npz files (%(default)s)",
    )
    encode.add_argument("--max-seconds", type=float, default=600, help="to read and voxelize one mesh (%(default)g)")
    encode.add_argument("--max-memory-gb", type=float, default=3.0, help="for the same (%(default)g)")
    encode.set_defaults(run=encode_files)

    decode = commands.add_parser(
        "decode",
        help="tokens to mesh files",
        description="Tokens (.jsonl, .parquet, .npz, and folders of them) to mesh files.",
        epilog=EXAMPLES,
        formatter_class=layout,
    )
    decode.add_argument("tokens", nargs="+", type=Path, metavar="TOKENS_OR_FOLDER")
    decode.add_argument("--out", type=Path, default=Path("decoded"), metavar="FOLDER", help="(%(default)s)")
    decode.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="of the meshes (%(default)s)")
    decode.set_defaults(run=decode_files)

    for command in (encode, decode):
        command.add_argument("--tokenizer", default=str(TOKENIZER), help="folder or hf://owner/name (%(default)s)")
        command.add_argument("--device", default=None, help="cpu, cuda, cuda:1 ... (cuda where there is one)")
    return parser


# --- encode ----------------------------------------------------------------------------------------------------------


class Voxelized(NamedTuple):
    grid: "SparseSDF"
    notes: tuple[str, ...]  # what was repaired or left out while the file was read


class VoxelizeJob(NamedTuple):
    name: str
    path: Path
    options: tuple[tuple[str, Any], ...]  # of model.sdf.voxelize
    max_memory_gb: float


def encode_files(options: argparse.Namespace) -> int:
    """The number of meshes that could not be encoded."""
    check_suffix(options.out)
    files, failures = _named_files(options.meshes)
    for failure in failures:
        _report(failure)
    tokenizer = _load_tokenizer(options)
    num_tokens = num_encoded = 0

    def encoded() -> Iterator[tuple[str, "Tokens"]]:
        nonlocal num_tokens, num_encoded
        for name, result in _encode_all(files, tokenizer, options):
            if isinstance(result, str):
                failures.append(f"{files[name]}: {result}")
                _report(failures[-1])
            else:
                num_encoded, num_tokens = num_encoded + 1, num_tokens + len(result)
                yield name, result

    write_tokens(options.out, encoded(), tokenizer)
    done = f"encoded {num_encoded} of {num_encoded + len(failures)} into {options.out}, {num_tokens} codes in all"
    print(f"{done}; {len(failures)} could not be used, listed above" if failures else done, file=sys.stderr)
    return len(failures)


def _named_files(given: Iterable[Path]) -> tuple[dict[str, Path], list[str]]:
    """Mesh files by name, in the order given, and what is wrong with the others.

    A file below a folder is named as find_meshes names it, one given by itself by its stem; where two names collide,
    both files go by their whole path.
    """
    found: list[tuple[str, Path]] = []
    failures = []
    for path in given:
        if path.is_dir():
            below = find_meshes(path)
            found += below.items()
            if not below:
                failures.append(f"{path}: there is no file ending in {', '.join(SUFFIXES)} below it")
        elif path.suffix.lower() not in SUFFIXES:
            failures.append(f"{path}: expected a file ending in {', '.join(SUFFIXES)}, or a folder")
        elif not path.exists():
            failures.append(f"{path}: there is no such file")
        else:
            found.append((path.stem, path))
    count = Counter(name for name, _ in found)
    return {n if count[n] == 1 else os.path.abspath(p).lstrip("/"): p for n, p in found}, failures  # noqa: PTH100


def _encode_all(
    files: dict[str, Path], tokenizer: "ShapeTokenizer", options: argparse.Namespace
) -> Iterator[tuple[str, "Tokens | str"]]:
    """Tokens of each file, or the reason why it has none, in the order of the files.

    Reading and voxelizing is done by other processes, which a hostile file may take down without harm.
    """
    grid = tuple(tokenizer.grid_options.items())
    jobs = [VoxelizeJob(name, path, grid, options.max_memory_gb) for name, path in files.items()]
    limits = Limits(options.max_seconds, options.max_memory_gb)
    waiting: dict[str, Tokens | str] = {}
    order = iter(files)
    due = next(order, None)
    with TemporaryDirectory() as markers:
        results = run_all(_voxelize_file, jobs, limits=limits, markers=Path(markers)) if jobs else iter(())
        for job, result in track(results, len(jobs), description="encode", unit="file"):
            for note in result.notes if isinstance(result, Voxelized) else ():
                _say(f"note on {job.path}: {note}")
            waiting[job.name] = _encode(result, tokenizer)
            while due is not None and due in waiting:
                yield due, waiting.pop(due)
                due = next(order, None)


def _encode(result: Voxelized | Failure | str, tokenizer: "ShapeTokenizer") -> "Tokens | str":
    if isinstance(result, Failure):
        remedy = "--max-seconds" if result.out_of_time else "--max-memory-gb"
        return f"{result.reason}; simplify the mesh or raise {remedy}"
    if isinstance(result, str):
        return result
    import torch

    try:
        return tokenizer.encode(result.grid)
    except InputError as error:
        return str(error)
    except torch.OutOfMemoryError:
        return f"its {len(result.grid.coords):,} voxels do not fit into the GPU's memory; try --device cpu"


def _voxelize_file(job: VoxelizeJob) -> Voxelized | str:
    """In a process of its own: the grid of a mesh file, or the reason why there is none."""
    from ..sdf import voxelize

    try:
        needed = memory_to_load(job.path) / GB
        if needed > job.max_memory_gb:
            return f"reading it takes about {needed:.1f} GB of memory; simplify the mesh or raise --max-memory-gb"
        mesh = load_mesh(job.path)
        return Voxelized(voxelize(mesh.vertices, mesh.faces, **dict(job.options)), mesh.notes)
    except InputError as error:
        return str(error)
    except OSError as error:
        return f"the file can't be opened ({error.strerror}); check its permissions"
    except MemoryError:
        return "there was not enough memory for it; simplify the mesh or raise --max-memory-gb"
    except Exception as error:  # noqa: BLE001 - one mesh must not end the run, and its line says what happened
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return f"voxelizing it failed ({what}); this is a fault of ours, please report it"


# --- decode ----------------------------------------------------------------------------------------------------------


def decode_files(options: argparse.Namespace) -> int:
    """The number of shapes that could not be decoded."""
    tokenizer = _load_tokenizer(options)
    shapes = chain.from_iterable(read_tokens(path, tokenizer) for path in options.tokens)
    written: set[Path] = set()
    num_failed = 0
    for found in track(shapes, sum(map(count_shapes, options.tokens)), description="decode", unit="shape"):
        try:
            target = _decode(found, tokenizer, options, written)
        except InputError as error:
            num_failed += 1
            _report(f"{found.place}: {error}")
        else:
            written.add(target)
    done = f"decoded {len(written)} of {len(written) + num_failed} into {options.out}"
    print(f"{done}; {num_failed} could not be used, listed above" if num_failed else done, file=sys.stderr)
    return num_failed


def _decode(found: Found, tokenizer: "ShapeTokenizer", options: argparse.Namespace, written: set[Path]) -> Path:
    """The file that it wrote. Raises InputError with the reason why there is none."""
    if found.tokens is None:
        raise InputError(found.reason)
    target = inside(options.out, f"{found.name}.{options.format}")
    if target in written:
        raise InputError(f"the name {found.name!r} was there before; expected each once; rename one")
    mesh = tokenizer.decode(found.tokens)
    if not len(mesh.faces):
        raise InputError("it decodes to no surface; expected one; these tokens make no shape")
    content = mesh.export(file_type=options.format)
    assert isinstance(content, (str, bytes))  # trimesh has formats that give a dict
    write_whole(target, content)
    return target


# --- both ------------------------------------------------------------------------------------------------------------


def _load_tokenizer(options: argparse.Namespace) -> "ShapeTokenizer":
    import torch

    from ..device import pick_device
    from ..tokenizer import ShapeTokenizer

    try:
        device = torch.device(options.device) if options.device else pick_device()
    except RuntimeError as error:
        raise InputError(f"--device is {options.device}; expected cpu or cuda; correct it") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {options.device} but there is no GPU that torch can use; leave it out")
    return ShapeTokenizer.from_pretrained(options.tokenizer, device=device)


def _report(failure: str) -> None:
    _say(f"rejected {failure}")


def _say(line: str) -> None:
    """On stderr, above the progress bar where there is one."""
    tqdm.write(printable(line), file=sys.stderr)


if __name__ == "__main__":
    main()
