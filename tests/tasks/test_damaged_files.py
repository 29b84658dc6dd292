"""A file of any kind that the program reads, damaged at random, gives what was written or one sentence."""

import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoint import export_vae, load_vae, save_vae
from model.errors import InputError
from model.quantizer import ResidualQuantizer
from model.sdf import grid_surface
from model.tensors import digest_of_tensors
from model.tokenizer import ShapeTokenizer
from model.tokens import Tokens, count_shapes, read_tokens, write_tokens
from model.vqvae import VQVAE
from tasks.data import CODEBOOK_FILE, latents_file, load_codebooks, read_vectors
from tasks.run import Settings, paths
from tasks.shards import INDEX, SURFACES, open_shards, read_facts, read_lone_shape, write_lone_shape, write_surfaces
from tasks.stage1 import stage1
from tasks.training import ResumePoint
from tests.shapes import one_thread, ring_and_box, voxelized
from tests.tasks.conftest import RESOLUTION

CPU = torch.device("cpu")
STATE = {"step": 2, "rows": [{"loss": 0.5}], "weights": torch.arange(2000.0)}


@dataclass(frozen=True)
class Kind:
    """A kind of file: where one is, and what it holds, as something that can be compared."""

    file: Path
    read: Callable[[], object]
    foreign: bool = False  # it carries no digest of ours: other values may pass, if they are finite and fit


def bits(value: object) -> bytes:
    return pickle.dumps(value)


def state_of(network: torch.nn.Module) -> str:
    assert all(value.isfinite().all() for value in network.state_dict().values())
    return digest_of_tensors(network.state_dict())


def tokenizer_in(folder: str) -> object:
    tokenizer = ShapeTokenizer.from_pretrained(folder)
    return state_of(tokenizer.vqvae), tokenizer.grid_options, tokenizer.fingerprint


def shapes_of(split: str) -> object:
    shards = open_shards(paths.SDF)
    return bits([vars(shards.read(name)) for name in shards.names(split)])


def surface() -> object:
    found = open_shards(paths.SDF).read_surface("test/ring_and_box")
    return bits((found.vertices, found.faces))


def lines(path: str, tokenizer: ShapeTokenizer) -> object:
    """Shapes by name. A line that cannot be used is listed and the others are read, so it is left out."""
    shapes = {}
    for found in read_tokens(Path(path), tokenizer):
        assert (found.tokens is None) == bool(found.reason)
        assert "\n" not in found.reason
        if found.tokens is not None and not found.note:  # a note tells of another name
            shapes[found.name] = bits(tuple(vars(found.tokens).values()))
    return shapes


@pytest.fixture(scope="module")
def kinds(made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Kind]]:
    root = tmp_path_factory.mktemp("damaged")
    shutil.copytree(made_once, root, dirs_exist_ok=True)
    with chdir(root), one_thread():
        vae = load_vae(paths.VAE)
        quantizer = ResidualQuantizer.of(load_codebooks())
        grid = {"resolution": RESOLUTION, "truncation_voxels": 2.0, "mode": "solid", "max_bad_flip_ratio": 0.03}
        tokenizer = ShapeTokenizer(VQVAE(vae, quantizer), **grid)
        tokenizer.save_pretrained("tokenizer")
        export_vae(vae, Path("published.ckpt"), layout="published")
        save_vae(vae, Path("vae"))
        ring = voxelized(ring_and_box())
        write_surfaces(paths.SDF / SURFACES, [("test/ring_and_box", grid_surface(ring))])
        write_lone_shape(Path("scratch.parquet"), ring, {"num_faces": 3, "notes": ["café"]})
        shards = open_shards(paths.SDF)
        encoded = {name: tokenizer.encode(shards.read(name)) for name in shards.names("train")[:3]}
        for path in ("tokens.jsonl", "tokens.parquet"):
            write_tokens(Path(path), encoded.items(), tokenizer)
        encoded["train/ball"].save("ball.npz")
        yield {
            "shard": Kind(paths.SDF / "shard_00000.parquet", lambda: shapes_of("train")),
            "index": Kind(paths.SDF / INDEX, lambda: (shapes_of("train"), bits(open_shards(paths.SDF).index.to_csv()))),
            "surfaces": Kind(paths.SDF / SURFACES, surface),
            "scratch": Kind(
                Path("scratch.parquet"),
                lambda: (
                    read_facts(Path("scratch.parquet")),
                    read_lone_shape(Path("scratch.parquet"), "x").to_pylist(),
                ),
            ),
            "latents": Kind(
                latents_file(paths.LATENTS, "val"),
                lambda: bits(read_vectors(paths.LATENTS, "val", max_per_view=None, seed=0).numpy()),
            ),
            "codebook": Kind(CODEBOOK_FILE, lambda: bits([codes.numpy() for codes in load_codebooks()])),
            "tokenizer": Kind(Path("tokenizer/model.safetensors"), lambda: tokenizer_in("tokenizer")),
            "config": Kind(Path("tokenizer/config.json"), lambda: tokenizer_in("tokenizer")),
            "checkpoint": Kind(Path("vae/model.safetensors"), lambda: state_of(load_vae("vae"))),
            "published": Kind(Path("published.ckpt"), lambda: state_of(load_vae("published.ckpt")), foreign=True),
            "lines": Kind(Path("tokens.jsonl"), lambda: lines("tokens.jsonl", tokenizer)),
            "table": Kind(Path("tokens.parquet"), lambda: lines("tokens.parquet", tokenizer)),
            "npz": Kind(Path("ball.npz"), lambda: bits(tuple(vars(Tokens.load("ball.npz")).values()))),
        }


NAMES = (
    *("shard", "index", "surfaces", "scratch", "latents", "codebook", "tokenizer", "config", "checkpoint"),
    *("published", "lines", "table", "npz"),
)


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes flipped, the end cut off or something behind it, a block of zeros, two blocks exchanged."""
    spoilt = bytearray(content)
    while bytes(spoilt) == content:
        block = int(rng.integers(1, max(2, min(512, len(content) // 2))))
        here, there = (int(place) for place in rng.integers(0, len(content) - block, 2))
        match rng.integers(6):
            case 0 | 1:
                for place in rng.integers(0, len(content), rng.integers(1, 9)):
                    spoilt[place] ^= int(rng.integers(1, 256))
            case 2:
                del spoilt[int(rng.integers(0, len(content))) :]
            case 3:
                spoilt += rng.bytes(block)
            case 4:
                spoilt[here : here + block] = bytes(block)
            case _:
                other = spoilt[there : there + block]
                spoilt[there : there + block] = spoilt[here : here + block]
                spoilt[here : here + block] = other
    return bytes(spoilt)


def outcomes(kind: Kind, count: int) -> Counter[str]:
    """How many damaged files were refused, and how many gave what was written. Anything else fails."""
    expected, whole = kind.read(), kind.file.read_bytes()
    seen: Counter[str] = Counter()
    try:
        for seed in range(count):
            kind.file.write_bytes(damaged(whole, np.random.default_rng([seed, len(whole)])))
            try:
                read = kind.read()
            except InputError as error:
                told = str(error)
                read = None
            if read is None:
                assert "\n" not in told, f"seed {seed}: {told}"
                assert kind.file.name in told, f"seed {seed}: {told}"
                seen["refused"] += 1
                continue
            if isinstance(read, dict):  # line by line
                assert read.items() <= expected.items(), f"seed {seed}: other tokens"
                seen["as written" if read == expected else "refused"] += 1
            elif read == expected:
                seen["as written"] += 1
            else:
                assert kind.foreign, f"seed {seed}: other content was accepted"
                seen["finite, of the right names and shapes"] += 1
    finally:
        kind.file.write_bytes(whole)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_some_damaged_files(kinds: dict[str, Kind], name: str):
    seen = outcomes(kinds[name], 30)
    assert seen["refused"] > (1 if kinds[name].foreign else 20), seen


@pytest.mark.parametrize("name", ["latents", "table"])
def test_no_rows_are_lost_where_a_footer_tells_of_others(kinds: dict[str, Kind], name: str):
    """No digest is over the number of rows. Every bit of the footer that says it is flipped, and two of a name."""
    kind = kinds[name]
    whole = kind.file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")  # its length stands before the last four bytes
    num_rows, expected = pq.read_metadata(kind.file).num_rows, kind.read()
    tried = refused = no_text = 0
    try:
        for bit in range(8 * (len(whole) - 8 - footer), 8 * (len(whole) - 8)):
            spoilt = bytearray(whole)
            spoilt[bit // 8] ^= 1 << bit % 8
            try:
                metadata = pq.read_metadata(pa.BufferReader(spoilt))
                told = [metadata.num_rows, sum(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))]
            except UnicodeDecodeError:  # the name of a column is no text
                told, no_text = [], no_text + 1
            except (OSError, pa.ArrowException):
                continue
            if told == [num_rows, num_rows] or (not told and no_text > 2):
                continue
            kind.file.write_bytes(spoilt)
            tried += 1
            if name == "table":
                assert told or count_shapes(kind.file) == 1  # whatever is there is told by reading
                assert kind.read() == {}
                continue
            try:
                assert kind.read() == expected
            except InputError as error:
                refused += f"{kind.file.name} can't be read" in str(error)
    finally:
        kind.file.write_bytes(whole)
    assert tried > 5
    assert name == "table" or refused > 5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_damaged_files(kinds: dict[str, Kind], name: str, capsys: pytest.CaptureFixture):
    seen = outcomes(kinds[name], 1000)
    with capsys.disabled():
        print(f"{name}: {dict(seen)}")
    assert seen["refused"] > (30 if kinds[name].foreign else 700)


# --- resume states ---------------------------------------------------------------------------------------------------


def damaged_states(count: int, said: Callable[[], str]) -> Counter[str]:
    """Of two saved states the last, or both, are damaged: what is read is one of them or nothing, and is said."""
    seen: Counter[str] = Counter()
    for seed in range(count):
        rng = np.random.default_rng(seed)
        point = ResumePoint("stage2", f"{seed:x}")
        for step in (1, 2):
            point.save(STATE | {"step": step})
        for file in ("state.pt", "previous.pt")[: 1 + seed % 2]:
            path = point.directory / file
            path.write_bytes(damaged(path.read_bytes(), rng))
        state = point.load(CPU)
        lines_said = said().splitlines()
        assert len(lines_said) == 1 + seed % 2
        assert all("is damaged and set aside" in line for line in lines_said)
        if seed % 2:
            assert state is None
        else:
            assert bits((state["step"], state["rows"])) == bits((1, STATE["rows"]))
            assert torch.equal(state["weights"], STATE["weights"])
        point.save(STATE | {"step": 3})
        assert point.load(CPU)["step"] == 3
        seen["nothing used" if state is None else "the one before used"] += 1
        shutil.rmtree(point.directory)
    return seen


def test_some_damaged_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    damaged_states(40, lambda: capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nine_hundred_damaged_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    seen = damaged_states(900, lambda: capsys.readouterr().err)
    with capsys.disabled():
        print(dict(seen))


class Killed(Exception):
    """As kill -9 would end it: nothing in the stage knows it."""


def rerun_with_damage(settings: Settings, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1, ended in the middle; each of its states damaged or not; and again, to the end."""
    rng = np.random.default_rng(seed)
    shutil.rmtree(paths.RESUME / "stage1", ignore_errors=True)
    shutil.rmtree(CODEBOOK_FILE.parent)
    save, saved = ResumePoint.save, []

    def save_and_die(point: ResumePoint, state: dict) -> None:
        save(point, state)
        saved.append(state["step"])
        if len(saved) == 4:  # at steps 5, 10, 10 before validation, and 15
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(ResumePoint, "save", save_and_die)
        with pytest.raises(Killed):
            stage1(settings)
    files = sorted(paths.RESUME.glob("stage1/*/*.pt"))
    assert [file.name for file in files] == ["previous.pt", "start1.pt", "state.pt"]
    chosen = [file for file in files if seed % 8 >> files.index(file) & 1] or files
    for file in chosen:
        file.write_bytes(damaged(file.read_bytes(), rng))
    stage1(settings)


def check_reruns(
    settings: Settings, seeds: Iterable[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Counter[str]:
    """Every rerun leaves the undisturbed run's codebook, to the bit."""
    expected = CODEBOOK_FILE.read_bytes()
    seen: Counter[str] = Counter()
    for seed in seeds:
        rerun_with_damage(settings, seed, monkeypatch)
        said = capsys.readouterr().err
        assert CODEBOOK_FILE.read_bytes() == expected
        went_on = [line for line in said.splitlines() if line.startswith("going on from step")]
        seen[went_on[0].split(",")[0] if went_on else "from the start"] += 1
    return seen


def test_reruns_with_damaged_states_end_as_if_nothing_had_happened(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    """The codes of the start are damaged; the last state; both states."""
    seen = check_reruns(small_settings, (2, 4, 5), monkeypatch, capsys)
    assert seen == {"going on from step 15": 1, "going on from step 10": 1, "from the start": 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_forty_reruns(
    small_project: Path, small_settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    seen = check_reruns(small_settings, range(40), monkeypatch, capsys)
    with capsys.disabled():
        print(dict(seen))
