"""The evaluation as one HTML file that needs nothing else: no network, no script, no other file."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import exp
from pathlib import Path
from typing import Any

import pandas as pd

ROW_TITLES = {
    "reference": "truth, sampled twice",
    "floor": "voxel grid (floor)",
    "vae": "VAE, not quantised",
    "stage1": "after stage 1",
    "stage2": "after stage 2",
}
NOTHING = "-"
TIMES = ("encode_ms", "decode_ms")
EXTREMES = 8  # shapes listed at either end

MEANINGS = {
    "CD-L1": "Chamfer distance: mean distance from the reconstruction to the truth and back, averaged. In units of "
    "the [-1, 1] cube that the mesh is normalised into. Smaller is better.",
    "CD-L2": "Sum of both mean squared distances. Smaller is better.",
    "F at t": "Harmonic mean of precision (share of the reconstruction within t of the truth) and recall (the "
    "reverse). Larger is better.",
    "normals": "Mean cosine between the normals of nearest points. The second figure ignores the sign: use it where "
    "the true mesh's winding is not consistent. Larger is better.",
    "spurious": "Share of the reconstructed area farther than 2 voxels from the true surface. Smaller is better.",
    "SDF L1, signs": "Mean error of the stored value (unit: the truncation distance) and share of wrong signs, over "
    "the voxels of the true band. Smaller is better.",
    "V-IoU, S-IoU": "Overlap of the solids at points spread evenly, and at points near the true surface; only "
    "where both surfaces are closed, which the last figure counts. Larger is better.",
    "tokens, bits": "Tokens per shape, and tokens times log2 of the codebook size. Where the tokens lie is not "
    "counted.",
    "encode, decode ms": "Medians: voxels to latents or tokens, and those to a mesh. Voxelising is not counted.",
    "failed": "Shapes without any surface. They count in every mean, with the worst possible value.",
    "truth, sampled twice": "Surfaces are compared by random points, so even a perfect reconstruction has a distance. "
    "This row is that distance: no row can be better.",
}


@dataclass(frozen=True)
class Report:
    table: pd.DataFrame  # a line per shape and row
    metrics: Mapping[str, Any]  # of the metrics file
    plots: Mapping[str, bytes]  # PNG by file name
    resolution: int
    num_points: int


def write_report(path: Path, report: Report) -> None:
    num_shapes = report.table["shape"].nunique()
    sections = [
        "<h1>Shape tokenizer: evaluation</h1>",
        f"<p>{num_shapes} test shapes, resolution {report.resolution}, {report.num_points:,} surface points per mesh. "
        "Means over shapes; in brackets the 95 % bootstrap interval of the mean.</p>",
        _summary_table(report),
        _definitions(),
        "<h2>Pictures</h2><p>From the best to the worst reconstruction by stage 2. CD-L1 after VAE / stage 1 / stage 2."
        "</p>",
        _picture(report.plots["shapes.png"], "truth, VAE, stage 1 and stage 2 side by side"),
        "<h2>Codebook on the test split</h2>",
        _codebook_table(report.metrics["codebook"]),
        _picture(report.plots["usage_histogram.png"], "how often each code is used"),
        "<h2>Training</h2>",
        _picture(report.plots["loss_curves.png"], "loss curves of both stages"),
        "<h2>Best and worst shapes</h2>",
        _extremes(report.table),
    ]
    path.write_text(_PAGE.format(body="\n".join(sections)), encoding="utf-8")


def _summary_table(report: Report) -> str:
    thresholds = [key.removeprefix("fscore_") for key in report.metrics["floor"] if key.startswith("fscore_")]
    table = report.table
    milliseconds = {(row, key): table[table.row == row][key].median() for row in ROW_TITLES for key in TIMES}
    columns: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
        "CD-L1": lambda _, m: (
            f"{_number(m['cd_l1'])} <small>[{_number(m['cd_l1_ci_low'])}, {_number(m['cd_l1_ci_high'])}]</small>"
        ),
        "median": lambda _, m: _number(m["cd_l1_median"]),
        "95 % below": lambda _, m: _number(m["cd_l1_p95"]),
        "CD-L2": lambda _, m: _number(m["cd_l2"]),
        **{f"F at {t}": lambda _, m, t=t: _number(m[f"fscore_{t}"], 3) for t in thresholds},  # type: ignore[misc]
        "normals": lambda _, m: (
            f"{_number(m['normal_consistency'], 3)}, {_number(m['normal_consistency_absolute'], 3)}"
        ),
        "spurious": lambda _, m: _percent(m["spurious_area"]),
        "SDF L1, signs": lambda _, m: f"{_number(m.get('sdf_l1'))}, {_percent(m.get('sign_errors'))}",
        "V-IoU, S-IoU": lambda _, m: (
            f"{_percent(m.get('volume_iou'))}, {_percent(m.get('surface_iou'))} <small>({m['num_closed']})</small>"
        ),
        "tokens, bits": lambda _, m: f"{_number(m.get('num_tokens'), 0)}, {_number(m.get('bits'), 0)}",
        "encode, decode ms": lambda row, _: (
            f"{_number(milliseconds[row, 'encode_ms'], 0)}, {_number(milliseconds[row, 'decode_ms'], 0)}"
        ),
        "failed": lambda _, m: str(m["failures"]),
    }
    rows = [
        [escape(title), *(column(row, report.metrics[row]) for column in columns.values())]
        for row, title in ROW_TITLES.items()
    ]
    return _table(["", *columns], rows)


def _codebook_table(codebook: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for stage, m in codebook.items():
        size, tokens = m["codebook_size"], m["num_tokens"]
        rows.append(
            [
                escape(ROW_TITLES[stage]),
                str(size),
                f"{tokens:,}",
                _percent(m["usage"]),
                _percent(1 - exp(-tokens / size)),
                f"{_number(m['perplexity'], 0)} <small>({_percent(m['perplexity'] / size)} of all codes)</small>",
                _number(m["entropy_bits"], 2),
                _percent(m["top_share"]),
                _number(m["normalised_error"]),
            ]
        )
    head = [
        "",
        "codes",
        "tokens",
        "used",
        "used if even",
        "perplexity",
        "entropy, bits",
        "top code",
        "error / variance",
    ]
    note = (
        "<p>“Used if even” is the share of codes that this many tokens would show if all codes were equally "
        "likely: with few tokens per code, usage can't reach 100 %.</p>"
    )
    return _table(head, rows) + note


def _extremes(table: pd.DataFrame) -> str:
    errors = table.pivot(index="shape", columns="row", values="cd_l1").sort_values("stage2", kind="stable")
    parts = {"Best": errors.head(EXTREMES), "Worst": errors.iloc[EXTREMES:].tail(EXTREMES)[::-1]}
    head = ["CD-L1", *(escape(title) for title in ROW_TITLES.values())]
    return "".join(
        f"<h3>{name}</h3>"
        + _table(
            head, ([escape(str(shape)), *(_number(line[row]) for row in ROW_TITLES)] for shape, line in part.iterrows())
        )
        for name, part in parts.items()
        if len(part)
    )


def _definitions() -> str:
    items = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in MEANINGS.items())
    return f"<details open><summary>What the numbers mean</summary><dl>{items}</dl></details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>"


def _picture(png: bytes, description: str) -> str:
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def _number(value: float | int | None, digits: int = 5) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _percent(value: float | int | None) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{100 * value:.1f} %"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Shape tokenizer: evaluation</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; color: #222;
  background: #fff }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }}
th, td {{ padding: .3rem .6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
small {{ color: #666 }}
.scroll {{ overflow-x: auto; margin: 1rem 0 }}
img {{ max-width: 100%; height: auto }}
dt {{ font-weight: 600 }} dd {{ margin: 0 0 .4rem 1.5rem }}
summary {{ cursor: pointer }}
</style></head><body>
{body}
</body></html>
"""
