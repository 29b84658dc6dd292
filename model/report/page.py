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
from .compare import compare_within, num_better, verdict
from .figures import NOTHING, ROW_TITLES, figures_of, rows_of, title_of_codes
from .gallery import Gallery, Ranking
from .plots import draw_history, other_columns, webp
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
class Report:
    table: pd.DataFrame  # a line per shape and row
    aggregates: Aggregates
    ranking: Ranking
    metrics: Mapping[str, Any]  # of the metrics file
    histories: Mapping[str, pd.DataFrame]  # of training, by stage; none where that is not known
    codebook_plots: Mapping[str, bytes]  # PNG by file name
    gallery: Gallery
    sheet: Sequence[str]  # shapes with pictures
    scenes: Sequence[str]  # shapes to turn in 3D
    conditions: Mapping[str, int]  # resolution, num_points, seed


def report_page(report: Report) -> str:
    """The page; every text that a run brings in, such as a file's name, is escaped by the template's engine."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.globals |= {"num_better": num_better, "verdict": verdict, "NOTHING": NOTHING, "PARTS": PARTS}
    others = other_columns(report.histories)
    rows, shapes = rows_of(report.table), list(report.ranking)
    return environment.from_string(_resource("page.html")).render(
        report=report,
        rows={row: ROW_TITLES[row] for row in rows},
        row_titles=ROW_TITLES,
        figures=figures_of(report.table.columns),
        failures={ROW_TITLES[row]: count for row in rows if (count := report.metrics[row]["failures"])},
        won_back=_won_back(report.metrics),
        changes=_changes(report),
        places={shape: f"{place} of {len(shapes)}: {shape}" for place, shape in enumerate(shapes, start=1)},
        pictured=report.gallery.titles,
        pictures={s: [_data_url(webp(p), "webp") for p in report.gallery.pictures(s)] for s in report.sheet},
        extremes={"Best": shapes[:EXTREMES], "Worst": shapes[EXTREMES:][-EXTREMES:][::-1]},
        codebook=_codebook(report.metrics["codebook"]),
        codebook_pictures=[
            (CODEBOOK_TITLES[name], _data_url(png, "png")) for name, png in report.codebook_plots.items()
        ],
        curves=_data_url(draw_history(report.histories), "png") if report.histories else None,
        other_curves=_data_url(draw_history(report.histories, others), "png") if others else None,
        scenes=[scene_of(shape, report.gallery) for shape in report.scenes],
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


def _changes(report: Report) -> dict[str, Any]:
    """What stage 2 is held against, and for each figure that all of them have, the change from each."""
    against = compare_within(report.table, seed=report.conditions["seed"])
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
