"""The evaluation as one HTML file that needs nothing else: no network, no other file.

page.html, a Jinja2 template, is the page, and page.js turns the meshes in it; here is what changes from run to run.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined

from ..metrics import Summary
from ..plots import draw_history, other_columns
from .compare import compare_within, num_better, verdict
from .figures import NOTHING, ROW_TITLES, figures_of, rows_of, title_of_codes
from .gallery import Gallery, Ranking
from .sheet import webp
from .viewer import FIXED_POINT, scene_of

Aggregates = dict[str, dict[str, Summary]]  # by row and figure

EXTREMES = 8  # shapes listed at either end
PARTS = ("mean", "median", "p95", "ci_low", "ci_high")

CODEBOOK_TITLES = {
    "usage_histogram.png": "How often the test split's tokens take each code, most frequent first",
    "codebook_spectrum.png": "Spectrum of the latents",
    "codebook_pca.png": "Latents and codes in the plane of the largest variance",
    "codebook_neighbours.png": "How far codes are from each other",
    "codebook_use.png": "How often held-out tokens take each code",
}


@dataclass(frozen=True)
class Evaluation:
    """What was measured."""

    table: pd.DataFrame  # a line per shape and row with every figure
    costs: pd.DataFrame  # a line per shape and row: milliseconds and memory
    aggregates: Aggregates
    ranking: Ranking
    metrics: dict[str, Any]  # by row the means; `codebook` and `paired` beside them
    conditions: Mapping[str, int]  # what figures depend on besides the shapes: resolution, num_points, seed


def report_page(
    evaluation: Evaluation,
    gallery: Gallery,
    *,
    sheet: Sequence[str],
    scenes: Sequence[str],
    codebook_plots: Mapping[str, bytes],
    histories: Mapping[str, pd.DataFrame],
) -> str:
    """The page, with pictures of the shapes of `sheet` and those of `scenes` to turn in 3D.

    `codebook_plots` are PNG by file name, `histories` those of training by stage, none where that is not known. Every
    text that a run brings in, such as a file's name, is escaped by the template's engine.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.globals |= {"num_better": num_better, "verdict": verdict, "NOTHING": NOTHING, "PARTS": PARTS}
    others = other_columns(histories)
    rows, shapes = rows_of(evaluation.table), list(evaluation.ranking)
    return environment.from_string(_resource("page.html")).render(
        evaluation=evaluation,
        sheet=sheet,
        rows={row: ROW_TITLES[row] for row in rows},
        row_titles=ROW_TITLES,
        figures=figures_of(evaluation.table.columns),
        failures={ROW_TITLES[row]: count for row in rows if (count := evaluation.metrics[row]["failures"])},
        won_back=_won_back(evaluation.metrics),
        changes=_changes(evaluation),
        places={shape: f"{place} of {len(shapes)}: {shape}" for place, shape in enumerate(shapes, start=1)},
        pictured=gallery.titles,
        pictures={s: [_data_url(webp(p), "webp") for p in gallery.pictures(s)] for s in sheet},
        extremes={"Best": shapes[:EXTREMES], "Worst": shapes[EXTREMES:][-EXTREMES:][::-1]},
        codebook=_codebook(evaluation.metrics["codebook"]),
        codebook_pictures=[(CODEBOOK_TITLES[name], _data_url(png, "png")) for name, png in codebook_plots.items()],
        curves=_data_url(draw_history(histories), "png") if histories else None,
        other_curves=_data_url(draw_history(histories, others), "png") if others else None,
        scenes=scenes,
        meshes=[scene_of(shape, gallery) for shape in scenes],
        fixed_point=FIXED_POINT,
        script=_resource("page.js"),
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _won_back(metrics: Mapping[str, Any]) -> float | None:
    """The share of what quantising costs in distance that stage 2 wins back; None where that is not known, or 0."""
    if not {"vae", "stage1"} <= {*metrics}:
        return None
    vae, stage1, stage2 = (metrics[row]["cd_l1"] for row in ("vae", "stage1", "stage2"))
    return float((stage1 - stage2) / (stage1 - vae)) if stage1 > vae else None


def _changes(evaluation: Evaluation) -> dict[str, Any]:
    """What stage 2 is held against, and for each figure that all of them have, the change from each."""
    against = compare_within(evaluation.table, seed=evaluation.conditions["seed"])
    lines: dict[str, list[Any]] = {}
    for changes in against.values():
        for figure, change in changes:
            if figure.smaller_is_better is not None:
                lines.setdefault(figure.label, []).append((figure, change))
    return {
        "from": [ROW_TITLES[row] for row in against],
        "lines": {label: cells for label, cells in lines.items() if len(cells) == len(against)},
    }


def _codebook(codebook: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    measured = codebook.values()
    lines = {
        "codes": [f"{m['codebook_size']:,}" for m in measured],
        "tokens": [f"{m['num_tokens']:,}" for m in measured],
        "usage": [f"{100 * m['usage']:.1f} %" for m in measured],
        "usage if all codes were equally likely": [
            f"{100 * (1 - exp(-m['num_tokens'] / m['codebook_size'])):.1f} %" for m in measured
        ],
        "perplexity": [f"{m['perplexity']:.0f}" for m in measured],
        "perplexity / codes": [f"{100 * m['perplexity'] / m['codebook_size']:.1f} %" for m in measured],
        "entropy, bits": [f"{m['entropy_bits']:.2f}" for m in measured],
        "share of the top code": [f"{100 * m['top_share']:.2f} %" for m in measured],
        "squared error / variance of the latents": [f"{m['normalised_error']:.4f}" for m in measured],
    }
    return {"of": [title_of_codes(name) for name in codebook], "lines": lines}
