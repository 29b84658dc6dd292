"""Tokens of many shapes in files: JSON lines for language models, a Parquet table, or npz files in a folder."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from ..errors import InputError, first_line, is_of_environment
from ..files import DIGEST, digest_of, is_as_written, whole_file
from .dataset import UNFINISHED, is_of_sequences, read_sequences
from .grammar import SequenceTokenizer
from .tokens import Tokens, check_made_by, read_rows, write_parquet

JSON_LINES, PARQUET, NPZ = ".jsonl", ".parquet", ".npz"
CONTENT = ("tokens", "center", "scale", "fingerprint")  # of a line: what its digest is over, whatever else is added
NAME_DIGEST = "name_digest"  # apart, because a shape may be renamed
NAME_DIGITS = 8
MAX_LINE = 2**26  # bytes: several times what every latent voxel of a grid at resolution 1024 takes


class Found(NamedTuple):
    """What stands in one place of a file of tokens: a shape, or the reason why there is none."""

    place: str  # for messages
    name: str = ""
    tokens: Tokens | None = None
    reason: str = ""
    note: str = ""  # what is to be said of a shape that can be used


def write_tokens(path: Path, shapes: Iterable[tuple[str, Tokens]], tokenizer: SequenceTokenizer) -> None:
    """Named shapes as JSON lines, as a table or, where the path has no suffix, as npz files in a folder.

    They are taken one by one. A file appears when it is whole: a table and a file of lines at the end.
    """
    check_target(path)
    if path.suffix == PARQUET:
        write_parquet(path, shapes)
    elif path.suffix == JSON_LINES:
        with whole_file(path) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(json_line(name, tokens, tokenizer) for name, tokens in shapes)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for name, tokens in shapes:
            tokens.save(inside(path, f"{name}{NPZ}"))


def check_target(path: Path) -> None:
    """Raise InputError where write_tokens could not tell what to write, or where that can't be."""
    if path.suffix not in ("", JSON_LINES, PARQUET):
        raise InputError(f"{path}: tokens go to .jsonl, to .parquet or, without a suffix, to a folder; choose one")
    if path.exists() and path.is_dir() == bool(path.suffix):
        raise InputError(f"{path} is a {'folder' if path.suffix else 'file'}, which tokens can't replace; name another")


def read_tokens(path: Path, tokenizer: SequenceTokenizer) -> Iterator[Found]:
    """Every shape of a file of tokens, or of all below a folder, and every place where there should have been one."""
    if path.is_dir():
        yield from _read_folder(path, tokenizer)
        return
    is_empty = True
    try:
        for found in _read_file(path, tokenizer):
            is_empty = False
            yield found
        if is_empty:
            yield Found(str(path), reason="there is no shape in it; expected tokens; encode again")
    except InputError as error:
        yield Found(str(path), reason=str(error))
    except OSError as error:
        if is_of_environment(error, given=path):
            raise
        yield Found(str(path), reason=f"it can't be read ({error.strerror}); check its path")


def count_shapes(path: Path) -> int:
    """How many read_tokens will find, for a progress bar."""
    try:
        if path.is_dir():
            return sum(map(count_shapes, _files_below(path)))
        if path.suffix == PARQUET:
            return max(1, pq.read_metadata(path).num_rows)
        if path.suffix == JSON_LINES:
            return max(1, sum(1 for line in _lines(path) if line.strip()))
    except Exception:  # noqa: BLE001 - read_tokens says what is wrong
        return 1
    return 1


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in (JSON_LINES, PARQUET, NPZ))


def _read_folder(folder: Path, tokenizer: SequenceTokenizer) -> Iterator[Found]:
    files = _files_below(folder)
    for journal in sorted(folder.rglob(UNFINISHED)):
        reason = "encode was interrupted there; run it again to have the shapes that are missing"
        yield Found(str(journal.parent), reason=reason)
    if not files:
        yield Found(str(folder), reason="there is no .jsonl, .parquet or .npz file below it; expected tokens")
    for file in files:
        below = file.relative_to(folder).parent.as_posix()
        for found in read_tokens(file, tokenizer):
            yield found._replace(name=found.name if below == "." else f"{below}/{found.name}")


def _read_file(path: Path, tokenizer: SequenceTokenizer) -> Iterator[Found]:
    if path.suffix == JSON_LINES:
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                yield _found(f"{path}, line {number}", _numbered(path, number), tokens_of_json, line, tokenizer)
    elif path.suffix == PARQUET and is_of_sequences(path):
        for number, row in enumerate(read_sequences(path), 1):
            yield _found(f"{path}, row {number}", _numbered(path, number), _tokens_of_row, row, tokenizer)
    elif path.suffix == PARQUET:
        for number, (name, tokens) in enumerate(read_rows(path), 1):
            place = f"{path}, row {number}"
            if isinstance(tokens, InputError):
                yield Found(place, reason=str(tokens))
            else:
                yield Found(place, name or _numbered(path, number), tokens)
    elif path.suffix == NPZ:
        yield Found(str(path), path.stem, Tokens.load(path))
    else:
        raise InputError("it is no .jsonl, .parquet or .npz file and no folder; expected tokens")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file; of one that is too long, its beginning."""
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            yield line.decode("utf-8-sig", errors="replace")  # some editors begin a file with a mark
            while len(line) == MAX_LINE and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)


def _found(place: str, default_name: str, read: Callable[..., Found], *given: object) -> Found:
    try:
        found = read(*given)
    except InputError as error:
        return Found(place, reason=str(error))
    return found._replace(place=place, name=found.name or default_name)


def _numbered(path: Path, number: int) -> str:
    """The name of a shape that has none of its own."""
    return f"{path.stem}-{number:05d}"


def json_line(name: str, tokens: Tokens, tokenizer: SequenceTokenizer) -> str:
    """The row of a shape as a line."""
    return json.dumps(row_of(name, tokens, tokenizer), separators=(",", ":")) + "\n"


def row_of(name: str, tokens: Tokens, tokenizer: SequenceTokenizer) -> dict[str, Any]:
    """One shape: its flat sequence, and beside it what that leaves out."""
    fields = {
        "tokens": tokenizer.to_sequence(tokens),
        "center": tokens.center.tolist(),
        "scale": tokens.scale,
        "fingerprint": tokens.fingerprint,
    }
    digests = {DIGEST: _digest_of(fields), NAME_DIGEST: digest_of([name])[-NAME_DIGITS:]}
    return {"name": name, **fields, **digests}


def _digest_of(fields: Mapping[str, Any]) -> str:
    return digest_of([json.dumps({key: fields[key] for key in CONTENT if key in fields})])


def tokens_of_json(line: str, tokenizer: SequenceTokenizer) -> Found:
    """The shape of a JSON line. Only "tokens" must be there, so that a model's output will do; other keys may be.

    Without center and scale the shape stays in the [-1, 1] cube. Raises InputError for anything else than that, and
    where tokens, frame or fingerprint are not those that were written.
    """
    long = f", after the first {MAX_LINE} bytes of a line that is longer" if len(line) >= MAX_LINE else ""
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is no JSON ({first_line(error)}); expected a line as encode writes{long}") from error
    if not isinstance(fields, dict) or "tokens" not in fields:
        raise InputError('it is no JSON object with the key "tokens"; expected a line as encode writes')
    return _tokens_of_row(fields, tokenizer)


def _tokens_of_row(fields: Mapping[str, Any], tokenizer: SequenceTokenizer) -> Found:
    if not is_as_written(fields, _digest_of(fields), required="fingerprint" in fields):
        raise InputError(
            'its "digest" is not that of tokens, center, scale and fingerprint; it is damaged or was edited: encode '
            'again, or remove "digest" and "fingerprint"'
        )
    name, center, scale = fields.get("name", ""), fields.get("center"), fields.get("scale")
    if not isinstance(name, str):
        raise InputError(f'"name" is {type(name).__name__}; expected a string; correct it or leave it out')
    if (center is None) != (scale is None):
        raise InputError('only one of "center" and "scale" is there; expected both or neither')
    # Before the sequence, of which another tokenizer's vocabulary has nothing to say that helps.
    check_made_by(tokenizer.fingerprint, fields.get("fingerprint", tokenizer.fingerprint))
    frame = {} if center is None else {"center": center, "scale": scale}
    tokens = tokenizer.from_sequence(fields.get("tokens", ()), **frame)
    renamed = NAME_DIGEST in fields and fields[NAME_DIGEST] != digest_of([name])[-NAME_DIGITS:]
    note = f"{name!r} is not the name that it was written with" if renamed else ""
    return Found("", name, tokens, note=note)


def inside(folder: Path, name: str) -> Path:
    """The file of that name in the folder. Raises InputError for a name that leads out of it."""
    relative = PurePosixPath(name)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the name {name!r} is no text that can be written as UTF-8; rename it") from None
    if relative.is_absolute() or ".." in relative.parts or "\0" in name or not relative.name:
        raise InputError(f"the name {name!r} does not stay below a folder; expected one such as chairs/a; rename it")
    return folder / relative
