"""The evaluation as one HTML file that needs nothing else: no network, no other file.

page.html is the page, page.js turns the meshes in it; what is written here is what changes from run to run.
"""

import json
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from math import exp
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from ..metrics import Change, Summary
from .compare import compare_rows, num_better, verdict
from .figures import NOTHING, ROW_TITLES, Figure, figures_of
from .gallery import PICTURED, Gallery
from .plots import draw_history, webp
from .viewer import FIXED_POINT, Scene, scene_of

Aggregates = dict[str, dict[str, Summary]]  # by row and figure
Ranking = dict[str, dict[str, float]]  # CD-L1 by shape and row, the best of stage 2 first

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
    histories: Mapping[str, pd.DataFrame]  # of training, by stage
    codebook_plots: Mapping[str, bytes]  # PNG by file name
    gallery: Gallery
    sheet: Sequence[str]  # shapes with pictures
    scenes: Sequence[str]  # shapes to turn in 3D
    conditions: Mapping[str, int]  # resolution, num_points, seed


def write_report(path: Path, report: Report) -> None:
    scenes = [scene_of(shape, report.gallery) for shape in report.scenes]
    page = Template(_resource("page.html"))
    html = page.substitute(
        conditions=_conditions(report),
        headline=_headline(report),
        figures=_figures(report),
        change=_change(report),
        meanings=_meanings(report),
        fixed_point=FIXED_POINT,
        scenes_note=_how_many(report.scenes, report, "are here"),
        scene_options=_scene_options(report),
        scene_labels="".join(f"<div><p><b>{title}</b><small></small></p></div>" for title in PICTURED.values()),
        sheet_note=_how_many(report.sheet, report, "are shown"),
        sheet="\n".join(_shape(shape, report) for shape in report.sheet),
        extremes=_extremes(report),
        codebook=_codebook_table(report.metrics["codebook"]) + _codebook_pictures(report.codebook_plots),
        training="".join(
            _picture(draw_history({stage: history}), f"loss curves of {stage}")
            for stage, history in report.histories.items()
        ),
        scenes=_json(scenes),
        script=_resource("page.js"),
    )
    path.write_text(html, encoding="utf-8")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _json(scenes: Sequence[Scene]) -> str:
    """As text inside a script element, which ends at the first `</script`, wherever it stands."""
    return json.dumps(scenes, separators=(",", ":")).replace("<", "\\u003c")


def _conditions(report: Report) -> str:
    failures = {title: report.metrics[row]["failures"] for row, title in ROW_TITLES.items()}
    failed = ", ".join(f"{escape(title)} {count}" for title, count in failures.items() if count)
    return (
        f"{len(report.ranking)} test shapes, resolution {report.conditions['resolution']}, "
        f"{report.conditions['num_points']:,} surface points a side. Lengths are in units of the [-1, 1] cube. "
        + (f"Shapes without any surface: {failed}." if failed else "Every row has a surface for every shape.")
    )


def _headline(report: Report) -> str:
    """What the tables say, in sentences."""
    metrics = report.metrics
    floor, vae, stage1, stage2 = (metrics[row]["cd_l1"] for row in ("floor", "vae", "stage1", "stage2"))
    sentences = [
        f"The voxel grid alone is {floor:.4f} away from the true surface (CD-L1), the VAE {vae:.4f}, its quantised "
        f"latents {stage1:.4f}, and the finished tokenizer <b>{stage2:.4f}</b>."
    ]
    if stage1 > vae:
        share = (stage1 - stage2) / (stage1 - vae)
        verb = "wins back" if share >= 0 else "adds"
        sentences.append(f"Stage 2 {verb} {100 * abs(share):.0f} % of what quantising costs.")
    tokens, bits = metrics["stage2"]["num_tokens"], metrics["stage2"]["bits"]
    sentences.append(f"A shape is {tokens:.0f} tokens on average, {bits:.0f} bits, and the places of the tokens.")
    return f"<p>{' '.join(sentences)}</p>"


def _figures(report: Report) -> str:
    """Figures down, rows of the evaluation across: means, with their intervals."""
    body = []
    for figure in figures_of(report.table.columns):
        cells = [_mean(figure, report.aggregates[row].get(figure.column)) for row in ROW_TITLES]
        body.append([escape(figure.label), *cells])
    body.append(["closed in all columns", *(str(report.metrics[row]["num_closed"]) for row in ROW_TITLES)])
    body.append(["failed", *(str(report.metrics[row]["failures"]) for row in ROW_TITLES)])
    return _table(["mean over shapes <small>95 % interval</small>", *map(escape, ROW_TITLES.values())], body)


def _mean(figure: Figure, summary: Summary | None) -> str:
    if summary is None:
        return NOTHING
    interval = "" if figure.smaller_is_better is None else _interval(figure, summary)
    return f"{figure.show(summary.mean)}<small>{interval}</small>"


def _interval(figure: Figure, of: Summary | Change, *, signed: bool = False) -> str:
    return f"{figure.show(of.ci_low, signed=signed)} to {figure.show(of.ci_high, signed=signed)}"


def _change(report: Report) -> str:
    """Stage 2 against stage 1 and against the VAE, shape by shape."""
    rows = {row: report.table[report.table.row == row] for row in ("vae", "stage1", "stage2")}
    against = {
        row: compare_rows(rows[row], rows["stage2"], seed=report.conditions["seed"]) for row in ("stage1", "vae")
    }
    lines: dict[str, list[str]] = {}
    for changes in against.values():
        for figure, change in changes:
            if figure.smaller_is_better is not None:
                lines.setdefault(figure.label, []).append(_one_change(figure, change))
    body = [[escape(label), *cells] for label, cells in lines.items() if len(cells) == len(against)]
    return (
        "<h3>Stage 2, shape by shape</h3><p>The mean change of a shape, its 95 % interval, and how many shapes became "
        "better. An interval without 0 is coloured: such a change is more than chance, even where the intervals "
        "of the means above overlap.</p>" + _table(["", "from stage 1 to stage 2", "from the VAE to stage 2"], body)
    )


def _one_change(figure: Figure, change: Change) -> str:
    interval = _interval(figure, change, signed=True)
    better = f"{num_better(figure, change)} of {change.num_shapes} better"
    mean = figure.show(change.mean, signed=True)
    return f'<span class="{verdict(figure, change)}">{mean}</span><small>{interval}; {better}</small>'


def _meanings(report: Report) -> str:
    figures = figures_of(report.table.columns)
    others = {
        ROW_TITLES["reference"]: "Surfaces are compared by random points, so even a perfect result has a distance: "
        "this one. No row can be better.",
        ROW_TITLES["floor"]: "The mesh of the stored field: what the resolution alone loses.",
        "closed in all columns": "Only these shapes have an IoU; the others are left out of its mean.",
        "failed": "Shapes without any surface. They count in every mean, with the worst possible value.",
    }
    items = [(figure.label, f"{figure.meaning} {_direction(figure)}") for figure in figures]
    listed = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in items + list(others.items()))
    head = ["", *(f"{escape(title)}, {part.replace('_', ' ')}" for title in ROW_TITLES.values() for part in PARTS)]
    body = [[escape(figure.label), *_all_parts(figure, report.aggregates)] for figure in figures]
    return (
        f"<details><summary>What the numbers mean</summary><dl>{listed}</dl></details>"
        "<details><summary>Medians, 95th percentiles and intervals of everything</summary>"
        f"{_table(head, body)}</details>"
    )


def _all_parts(figure: Figure, aggregates: Aggregates) -> Iterator[str]:
    for row in ROW_TITLES:
        summary = aggregates[row].get(figure.column)
        for part in PARTS:
            yield NOTHING if summary is None else figure.show(getattr(summary, part))


def _direction(figure: Figure) -> str:
    match figure.smaller_is_better:
        case True:
            return "Smaller is better."
        case False:
            return "Larger is better."
        case _:
            return ""


def _how_many(shapes: Sequence[str], report: Report, verb: str) -> str:
    total = len(report.ranking)
    if len(shapes) == total:
        return f"All {total} {verb}, from the best result of stage 2 to the worst."
    return f"{len(shapes)} of {total} {verb}, evenly from the best result of stage 2 to the worst."


def _place(shape: str, report: Report) -> str:
    return f"{list(report.ranking).index(shape) + 1} of {len(report.ranking)}: {shape}"


def _scene_options(report: Report) -> str:
    """The middle one is shown first: the best result of all says little, and is mostly a box."""
    middle = report.scenes[len(report.scenes) // 2]
    return "".join(
        f"<option{' selected' if shape == middle else ''}>{escape(_place(shape, report))}</option>"
        for shape in report.scenes
    )


def _shape(shape: str, report: Report) -> str:
    pictures = []
    for (row, title), picture in zip(PICTURED.items(), report.gallery.pictures(shape), strict=True):
        distance = "" if row == "truth" else f" {report.ranking[shape][row]:.4f}"
        image = _image(webp(picture), "webp", f"{shape}, {title}")
        pictures.append(f"<figure>{image}<figcaption>{title}<small>{distance}</small></figcaption></figure>")
    caption = f"<figcaption>{escape(_place(shape, report))}</figcaption>"
    return f'<figure class="shape">{caption}<div class="four">{"".join(pictures)}</div></figure>'


def _extremes(report: Report) -> str:
    shapes = list(report.ranking)
    parts = {"Best": shapes[:EXTREMES], "Worst": shapes[EXTREMES:][-EXTREMES:][::-1]}
    head = ["", *(escape(title) for title in ROW_TITLES.values())]
    return "".join(
        f"<h3>{name}</h3>"
        + _table(
            head,
            ([escape(shape), *(f"{report.ranking[shape][row]:.5f}" for row in ROW_TITLES)] for shape in part),
        )
        for name, part in parts.items()
        if part
    )


def _codebook_table(codebook: Mapping[str, Mapping[str, Any]]) -> str:
    lines = {
        "codes": [f"{m['codebook_size']:,}" for m in codebook.values()],
        "tokens": [f"{m['num_tokens']:,}" for m in codebook.values()],
        "usage": [f"{100 * m['usage']:.1f} %" for m in codebook.values()],
        "usage if all codes were equally likely": [
            f"{100 * (1 - exp(-m['num_tokens'] / m['codebook_size'])):.1f} %" for m in codebook.values()
        ],
        "perplexity": [f"{m['perplexity']:.0f}" for m in codebook.values()],
        "perplexity / codes": [f"{100 * m['perplexity'] / m['codebook_size']:.1f} %" for m in codebook.values()],
        "entropy, bits": [f"{m['entropy_bits']:.2f}" for m in codebook.values()],
        "share of the top code": [f"{100 * m['top_share']:.2f} %" for m in codebook.values()],
        "squared error / variance of the latents": [f"{m['normalised_error']:.4f}" for m in codebook.values()],
    }
    note = (
        "<p>Usage is the share of codes that occur at all. So few tokens can't show every code: compare it with the "
        "line below it; the gate judges the codebook on many more.</p>"
    )
    return _table(["", *(escape(ROW_TITLES[s]) for s in codebook)], [[k, *cells] for k, cells in lines.items()]) + note


def _codebook_pictures(plots: Mapping[str, bytes]) -> str:
    pictures = (
        f"<div><h3>{escape(_title(name))}</h3>{_picture(png, _title(name))}</div>" for name, png in plots.items()
    )
    return f'<div class="columns">{"".join(pictures)}</div>'


def _title(name: str) -> str:
    return CODEBOOK_TITLES.get(name) or Path(name).stem.replace("_", " ").capitalize()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _picture(png: bytes, description: str) -> str:
    return _image(png, "png", description)


def _image(content: bytes, kind: str, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/{kind};base64,{b64encode(content).decode()}">'
