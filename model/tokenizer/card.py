"""The card of a saved tokenizer: what it is, how to use it, what it measured."""

from collections.abc import Mapping
from typing import Any

from ..tokens import Vocabulary
from ..vqvae import Config

_CARD = """---
library_name: shape-tokenizer
tags:
- 3d
- mesh
- sdf
- vq-vae
- tokenizer
---

# Shape tokenizer, resolution {config.resolution}, {num_codes} codes

Turns a triangle mesh into integers and back: {codes_a_brick} for each occupied brick of 8³ voxels of a \
{config.resolution}³
grid.
The network is the sparse-SDF VAE of Direct3D-S2 ({vae.model_channels} channels, {vae.num_blocks} transformer blocks) \
with a codebook of
{num_codes} × {config.codebook.dim} between encoder and decoder, trained as ShapeLLM-Omni describes.

| | |
|---|---|
| grid | {config.resolution} voxels along a side of the [-1, 1] cube, \
SDF truncated at {config.truncation_voxels:g} voxels |
| codebook | {num_codes} codes of {config.codebook.dim} numbers |
| vocabulary of the flat sequences | {vocabulary.size} integers, {vocabulary.octree_levels} octree levels |
| fingerprint | `{config.fingerprint}` |

```python
from shape_tokenizer.tokenizer import ShapeTokenizer

tokenizer = ShapeTokenizer.from_pretrained("path/to/this/folder")
tokens = tokenizer.encode("chair.ply")  # a mesh file, or a mesh
sequence = tokenizer.to_sequence(tokens)  # integers below {vocabulary.size}, for a language model
tokenizer.decode(tokens).export("chair_decoded.ply")
```

## Figures

{figures}
"""
_NO_FIGURES = "None were given when this folder was written: `save_pretrained(folder, metrics=...)` takes them."


def model_card(config: Config, vocabulary: Vocabulary, metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown with the front matter that the hub reads.

    `config` is config.json; `metrics` are numbers by row and name; of a mapping in a number's
    place, as codebook.stage1 in metrics/evaluate.json, the numbers make a row under both names.
    """
    num_codes = config.codebook.num_codes
    return _CARD.format(
        config=config,
        vae=config.vae,
        vocabulary=vocabulary,
        num_codes=" + ".join(map(str, num_codes)),
        codes_a_brick="one code" if len(num_codes) == 1 else f"{len(num_codes)} codes, one of each residual level,",
        figures=_table(metrics) if metrics else _NO_FIGURES,
    )


def _table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per figure, one column per row of the metrics, blanks where a row has none."""
    rows: dict[str, Mapping[str, Any]] = {}
    for name, figures in metrics.items():
        nested = {f"{name} {key}": value for key, value in figures.items() if isinstance(value, Mapping)}
        rows |= {row: plain for row, values in ({name: figures} | nested).items() if (plain := _numbers(values))}
    keys = dict.fromkeys(key for figures in rows.values() for key in figures)
    head = f"| | {' | '.join(rows)} |\n|---|{'---|' * len(rows)}\n"
    lines = (
        f"| {key} | {' | '.join(f'{row[key]:.4g}' if key in row else '' for row in rows.values())} |" for key in keys
    )
    return head + "\n".join(lines)


def _numbers(figures: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in figures.items() if not isinstance(value, Mapping)}
