"""Can the tokens be learnt? Bits a shape of a small GPT on held-out shapes, beside codes that only count.

    .venv/bin/python -m benchmarks.language_model                            (after make repro, on a CPU)
    .venv/bin/python -m benchmarks.language_model --tokenizer pretrained/tokenizer_128 --dim 512 --layers 8 --steps 3000
        --warmup 200 --batch-tokens 65536 --context 2048 --lr 0.001        (on one GPU)

The training split's shapes, each under some of the cube's symmetries, become sequences; a causal transformer learns to
continue them, the grammar's mask over its logits; those longer than its context are left out. Its bits a shape on the
test split stand beside those of a uniform code, a unigram and an order-2 context code, which know the grammar too: what
is left to be learnt is which voxels and which codes. The validation split chooses the weights that are kept, and how
the codes that count blend their orders. Then samples are drawn with ShapeLogitsProcessor and decoded, beside masked
random tokens and the test shapes; some are in a picture beside the JSON, each with the training shape nearest to it.
"""

import argparse
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trimesh
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from benchmarks import command_line, conditions, write_json
from model.device import pick_device
from model.metrics import summarise, summarise_change
from model.report.render import SheetRow, draw_sheet, render_mesh
from model.tokenizer import ShapeLogitsProcessor, ShapeTokenizer
from model.tokens import SequenceReader, Tokens, Vocabulary
from tasks.data import choose_views, encode_views
from tasks.shards import open_shards

SETTINGS = {  # their defaults are the demo's, on one CPU core
    "symmetries": 8,
    "dim": 128,
    "layers": 4,
    "dropout": 0.1,
    "steps": 400,
    "warmup": 40,
    "lr": 2e-3,
    "weight_decay": 0.1,
    "batch_tokens": 2048,
    "context": 1536,
    "validate_every": 50,
    "samples": 1000,
    "samples_at_once": 250,
    "seed": 0,
}
STRENGTHS = (1, 4, 16, 64, 256, 1024, 4096)  # of the next lower order in a code that counts
HEAD_DIM = 32
SHOWN = 8  # samples in the picture
ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class Shape:
    """As a language model sees it."""

    codes: Tokens  # in the [-1, 1] cube
    sequence: Int[np.ndarray, " length"]
    kinds: Int[np.ndarray, " length"]  # of each integer: a row of Vocabulary.masks, known from those before it


def main() -> None:
    parser = command_line(__doc__, "language_model.json")
    parser.add_argument("--tokenizer", default="artifacts/tokenizer", help="(%(default)s)")
    parser.add_argument("--shards", type=Path, default=Path("data/sdf"), help="what voxelize left (%(default)s)")
    for name, value in SETTINGS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    options = parser.parse_args()

    device = pick_device()
    tokenizer = ShapeTokenizer.from_pretrained(options.tokenizer, device=device)
    vocabulary = tokenizer.vocabulary
    counts = {"train": options.symmetries, "val": 1, "test": 1}
    every = {split: list(read_split(tokenizer, options.shards, split, count)) for split, count in counts.items()}
    splits = {split: [s for s in shapes if len(s.sequence) <= options.context] for split, shapes in every.items()}
    torch.manual_seed(options.seed)
    network = GPT(vocabulary.size, options).to(device)
    result: dict[str, Any] = conditions(device) | {
        "threads": torch.get_num_threads(),
        "resolution": tokenizer.resolution,
        "vocabulary_size": vocabulary.size,
        "training_sequences": len(splits["train"]),
        "longer_than_the_context": {split: len(every[split]) - len(shapes) for split, shapes in splits.items()},
        "training_tokens": sum(len(shape.sequence) for shape in splits["train"]),
        "test_shapes": len(splits["test"]),
        "test_tokens_a_shape": round(float(np.mean([len(shape.sequence) for shape in splits["test"]])), 1),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "training": train(network, splits["train"], splits["val"], vocabulary, options),
    }
    bits = {
        "uniform": [uniform_bits(shape, vocabulary) for shape in splits["test"]],
        "unigram": ContextCode(splits["train"], vocabulary, order=0).best_bits_of(splits["test"], splits["val"]),
        "order_2": ContextCode(splits["train"], vocabulary, order=2).best_bits_of(splits["test"], splits["val"]),
        "language_model": network_bits(network, splits["test"], vocabulary),
    }
    result["bits_a_shape"] = {name: as_figures(summarise(values, seed=options.seed)) for name, values in bits.items()}
    result["language_model_less"] = {
        name: as_figures(summarise_change(values, bits["language_model"], seed=options.seed))
        for name, values in bits.items()
        if name != "language_model"
    }
    write_json(options.json, result)
    result["samples"] = judge_samples(network, tokenizer, splits, options)
    write_json(options.json, result)
    print(json.dumps(result, indent=2))


def as_figures(summary: Any) -> dict[str, float]:
    return {name: round(value, 1) for name, value in summary._asdict().items()}


def read_split(tokenizer: ShapeTokenizer, folder: Path, split: str, num_symmetries: int) -> Iterator[Shape]:
    shards, vocabulary = open_shards(folder), tokenizer.vocabulary
    views = choose_views(shards.names(split), num_symmetries)
    for latents in encode_views(tokenizer.vqvae.vae, shards, views):
        indices = tokenizer.vqvae.quantizer.indices_of(latents.mean.to(tokenizer.device)).cpu().numpy()
        codes = Tokens(latents.coords.numpy(), indices, np.zeros(3), 1.0, tokenizer.fingerprint)
        sequence, reader, kinds = tokenizer.to_sequence(codes), SequenceReader(vocabulary), []
        for token in sequence:
            kinds.append(reader.expected)
            reader.read(token)
        yield Shape(codes, np.array(sequence), np.array(kinds))


# --- codes that count ------------------------------------------------------------------------------------------------


def uniform_bits(shape: Shape, vocabulary: Vocabulary) -> float:
    """Every integer that the grammar allows equally likely."""
    return float(np.log2(vocabulary.masks.sum(1)[shape.kinds]).sum())


class ContextCode:
    """The integer's kind and the `order` integers before it, counted on training sequences.

    Counts are blended with the code of the next lower order, which weighs as much as `strength` integers seen, down to
    the uniform code over what the grammar allows.
    """

    def __init__(self, shapes: Sequence[Shape], vocabulary: Vocabulary, *, order: int):
        self.order, self.num_allowed = order, vocabulary.masks.sum(1)
        self.counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for shape in shapes:
            for place, token in enumerate(shape.sequence.tolist()):
                for context in self._contexts(shape, place):
                    self.counts[context][token] += 1

    def _contexts(self, shape: Shape, place: int) -> list[tuple[int, ...]]:
        """From none before it to `order` before it."""
        kind, before = int(shape.kinds[place]), shape.sequence[max(0, place - self.order) : place].tolist()
        return [(kind, *before[len(before) - n :]) for n in range(len(before) + 1)]

    def best_bits_of(self, shapes: Sequence[Shape], heldout: Sequence[Shape]) -> list[float]:
        """With the strength that takes the fewest bits for other held-out shapes."""
        best = min(STRENGTHS, key=lambda strength: sum(self.bits_of(heldout, strength)))
        return self.bits_of(shapes, best)

    def bits_of(self, shapes: Sequence[Shape], strength: float) -> list[float]:
        return [-sum(np.log2(self._probability(s, i, strength)) for i in range(len(s.sequence))) for s in shapes]

    def _probability(self, shape: Shape, place: int, strength: float) -> float:
        token = int(shape.sequence[place])
        probability = 1 / self.num_allowed[shape.kinds[place]]
        for context in self._contexts(shape, place):
            seen = self.counts.get(context)
            if seen is not None:
                probability = (seen[token] + strength * probability) / (seen.total() + strength)
        return probability


# --- the network -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-norm attention with rotary positions, and a perceptron."""

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        self.attention_norm, self.perceptron_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.perceptron = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        start: int = 0,
        past: Float[Tensor, "2 batch heads all 32"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """`past` has the keys and values of all positions before `start`, and gets those of x, one position, too."""
        batch, length, dim = x.shape
        qkv = self.to_qkv(self.attention_norm(x)).view(batch, length, 3, dim // HEAD_DIM, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = rotated(q, start), rotated(k, start)
        if past is not None:
            past[:, :, :, start : start + length] = torch.stack([k, v])
            k, v = past[:, :, :, : start + length]
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=past is None)
        x = x + self.dropout(self.to_out(attended.transpose(1, 2).reshape(batch, length, dim)))
        return x + self.dropout(self.perceptron(self.perceptron_norm(x)))


def rotated(x: Float[Tensor, "batch heads length 32"], start: int) -> Float[Tensor, "batch heads length 32"]:
    """Rotary position embedding (Su et al. 2021), positions counted from `start`."""
    half = HEAD_DIM // 2
    frequencies = ROTARY_BASE ** -(torch.arange(half, device=x.device) / half)
    angles = torch.arange(start, start + x.shape[2], device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class GPT(nn.Module):
    """Embedding, blocks, and logits by the embedding again."""

    def __init__(self, vocabulary_size: int, options: argparse.Namespace):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, options.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList([Block(options.dim, options.dropout) for _ in range(options.layers)])
        self.norm = nn.LayerNorm(options.dim)

    def forward(self, tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length size"]:
        """Logits of what follows each."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.embedding.weight)

    def continuation(
        self, batch: int, longest: int
    ) -> Callable[[Int[Tensor, "batch length"]], Float[Tensor, "batch size"]]:
        """A function that gives the logits of what follows, to be called with sequences that grow by one each time."""
        weight = self.embedding.weight
        shape = 2, batch, weight.shape[1] // HEAD_DIM, longest, HEAD_DIM
        past = [weight.new_zeros(shape) for _ in self.blocks]

        def next_logits(tokens: Int[Tensor, "batch length"]) -> Float[Tensor, "batch size"]:
            x = self.embedding(tokens[:, -1:])
            for block, kept in zip(self.blocks, past, strict=True):
                x = block(x, tokens.shape[1] - 1, kept)
            return F.linear(self.norm(x[:, -1]), weight)

        return next_logits


def train(
    network: GPT, shapes: Sequence[Shape], heldout: Sequence[Shape], vocabulary: Vocabulary, options: argparse.Namespace
) -> dict[str, Any]:
    """The weights become those of the validation with the fewest bits a shape."""
    device, started = network.embedding.weight.device, time.perf_counter()
    masks = torch.tensor(vocabulary.masks, device=device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, betas=(0.9, 0.95), weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=options.warmup / options.steps, cycle_momentum=False
    )
    rng = np.random.default_rng(options.seed)
    best, kept, history = float("inf"), {}, []
    for step in range(1, options.steps + 1):
        network.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = batch_loss(network, draw_batch(shapes, rng, options), masks)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % options.validate_every == 0 or step == options.steps:
            bits = float(np.mean(network_bits(network, heldout, vocabulary)))
            history.append({"step": step, "train_loss": round(loss.item(), 4), "val_bits_a_shape": round(bits, 1)})
            print(json.dumps(history[-1]), flush=True)
            if bits < best:
                best, kept = bits, {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(kept)
    return {"seconds": round(time.perf_counter() - started, 1), "history": history}


def draw_batch(shapes: Sequence[Shape], rng: np.random.Generator, options: argparse.Namespace) -> list[Shape]:
    """Shapes with about so many tokens in all."""
    batch: list[Shape] = []
    while sum(len(shape.sequence) for shape in batch) < options.batch_tokens:
        batch.append(shapes[int(rng.integers(len(shapes)))])
    return batch


def batch_loss(network: GPT, shapes: Sequence[Shape], masks: Bool[Tensor, "num_kinds size"]) -> Float[Tensor, ""]:
    """Mean cross-entropy over all integers but the first of each."""
    tokens, kinds, present = (
        nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True).to(masks.device)
        for rows in zip(*((s.sequence, s.kinds, np.ones(len(s.kinds), bool)) for s in shapes), strict=True)
    )
    present = present[:, 1:]
    logits = network(tokens[:, :-1])[present].float()
    allowed = masks[kinds[:, 1:][present]]
    return F.cross_entropy(logits.masked_fill(~allowed, -torch.inf), tokens[:, 1:][present])


@torch.no_grad()
def network_bits(network: GPT, shapes: Sequence[Shape], vocabulary: Vocabulary) -> list[float]:
    """Of each shape: its first integer, start, takes none."""
    network.eval()
    masks = torch.tensor(vocabulary.masks, device=network.embedding.weight.device)
    return [float(batch_loss(network, [s], masks)) * (len(s.sequence) - 1) / np.log(2) for s in shapes]


# --- samples ---------------------------------------------------------------------------------------------------------


def judge_samples(
    network: GPT, tokenizer: ShapeTokenizer, splits: dict[str, list[Shape]], options: argparse.Namespace
) -> dict[str, Any]:
    """What the language model draws, beside masked random tokens and the shapes of the test split."""
    network.eval()
    vocabulary, device = tokenizer.vocabulary, tokenizer.device

    def flat(batch: int, _: int) -> Callable[[Tensor], Tensor]:
        return lambda _: torch.zeros(batch, vocabulary.size, device=device)

    known, unseen = ([s.codes for s in splits[split]] for split in ("train", "test"))
    sampled = draw(network.continuation, tokenizer, options)
    picture([shape for shape in sampled if shape is not None], known, tokenizer, options.json.with_suffix(".png"))
    judged = partial(judge, known=known, unseen=unseen, tokenizer=tokenizer)
    return {
        "language_model": judged(sampled),
        "masked_random_tokens": judged(draw(flat, tokenizer, options)),
        "test_shapes": judged(unseen),
    }


@torch.no_grad()
def draw(
    continuation: Callable[[int, int], Callable[[Tensor], Tensor]],
    tokenizer: ShapeTokenizer,
    options: argparse.Namespace,
) -> list[Tokens | None]:
    """Samples at temperature 1; None for one that has not ended where the context does."""
    vocabulary, longest, shapes = tokenizer.vocabulary, options.context, []
    generator = torch.Generator(tokenizer.device).manual_seed(options.seed)
    for first in range(0, options.samples, options.samples_at_once):
        batch = min(options.samples_at_once, options.samples - first)
        next_logits, processor = continuation(batch, longest), ShapeLogitsProcessor(vocabulary)
        tokens = torch.full((batch, 1), vocabulary.start, device=tokenizer.device)
        while tokens.shape[1] < longest and not (tokens[:, -1] == vocabulary.end).all():
            scores = processor(tokens, next_logits(tokens))
            drawn = torch.multinomial(scores.softmax(1), 1, generator=generator)
            tokens = torch.cat([tokens, drawn], 1)
        for row in tokens.tolist():
            end = row.index(vocabulary.end) + 1 if vocabulary.end in row else 0
            shapes.append(tokenizer.from_sequence(row[:end]) if end else None)
    return shapes


def judge(
    shapes: Sequence[Tokens | None], *, known: Sequence[Tokens], unseen: Sequence[Tokens], tokenizer: ShapeTokenizer
) -> dict[str, Any]:
    """All are decoded. The overlap of two shapes is that of their latent voxels, intersection over union."""
    whole = [shape for shape in shapes if shape is not None]
    meshes = [tokenizer.decode(shape) for shape in whole]
    with_surface = [mesh for mesh in meshes if len(mesh.faces)]
    in_one_piece = sum(num_pieces(mesh) == 1 for mesh in with_surface)
    copies = {tuple(tokenizer.to_sequence(shape)) for shape in known}
    return {
        "drawn": len(shapes),
        "ended": len(whole),
        "decoded": len(meshes),
        "with_a_surface": len(with_surface),
        "share_in_one_piece": round(in_one_piece / max(1, len(with_surface)), 3),
        "latent_voxels": round(float(np.mean([len(shape) for shape in whole])), 1),
        "overlap_with_nearest_training_shape": round(float(overlaps(whole, known, tokenizer).max(1).mean()), 3),
        "overlap_with_nearest_test_shape": round(float(overlaps(whole, unseen, tokenizer).max(1).mean()), 3),
        "copies_of_training_sequences": sum(tuple(tokenizer.to_sequence(shape)) in copies for shape in whole),
    }


def picture(samples: Sequence[Tokens], known: Sequence[Tokens], tokenizer: ShapeTokenizer, file: Path) -> None:
    """The first samples, as drawn, and below each the training shape with the greatest overlap."""
    shown = samples[:SHOWN]
    nearest = overlaps(shown, known, tokenizer).argmax(1)
    rows = {"drawn": shown, "the nearest training shape, decoded": [known[i] for i in nearest]}
    columns = [str(number + 1) for number in range(len(shown))]
    sheet = draw_sheet(
        columns, [SheetRow(name, [rendered(each, tokenizer) for each in row]) for name, row in rows.items()]
    )
    Image.fromarray(sheet).save(file)


def rendered(shape: Tokens, tokenizer: ShapeTokenizer) -> UInt8[np.ndarray, "size size 3"]:
    mesh = tokenizer.decode(shape)
    return render_mesh(mesh.vertices, mesh.faces, size=160)


def num_pieces(mesh: trimesh.Trimesh) -> int:
    return len(trimesh.graph.connected_components(mesh.edges_unique, nodes=np.arange(len(mesh.vertices))))


def overlaps(
    shapes: Sequence[Tokens], others: Sequence[Tokens], tokenizer: ShapeTokenizer
) -> Float[np.ndarray, "num_shapes num_others"]:
    ours, theirs = occupancy(shapes, tokenizer), occupancy(others, tokenizer)
    common = ours @ theirs.T
    return common / (ours.sum(1)[:, None] + theirs.sum(1)[None] - common)


def occupancy(shapes: Sequence[Tokens], tokenizer: ShapeTokenizer) -> Float[np.ndarray, "num_shapes num_cells"]:
    side = tokenizer.vocabulary.grid_size
    cells = np.zeros((len(shapes), side**3), np.float32)
    for row, shape in zip(cells, shapes, strict=True):
        row[np.ravel_multi_index(shape.coords.T, (side,) * 3)] = 1
    return cells


if __name__ == "__main__":
    main()
