"""What a person looks at to see why a codebook is good or bad, drawn from held-out latents and the codes."""

from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from ..quantizer import water_level
from .curves import png_of_figure

NUM_POINTS = 4000  # latents in the PCA picture
SIZE = (9.0, 3.6)  # inches


class Spectrum(NamedTuple):
    """Along the principal directions of the latents, widest first; in units of their total variance."""

    variance: Float[np.ndarray, " dim"]
    measured_error: Float[np.ndarray, " dim"]
    bound: Float[np.ndarray, " dim"]  # of a Gaussian at this bit rate: min(variance, water level)


def draw_codebook(
    vectors: Float[Tensor, "num_vectors dim"],
    indices: Int[Tensor, " num_vectors"],
    codes: Float[Tensor, "codebook_size dim"],
) -> dict[str, bytes | str]:
    """Files by name; `indices` are the codes of the vectors."""
    counts = torch.bincount(indices, minlength=len(codes)).numpy()
    directions = principal_directions(vectors)
    spectrum = measure_spectrum(vectors, indices, codes, directions)
    distances = neighbour_distances(codes).numpy()
    error = float((vectors - codes[indices]).square().sum(1).mean().sqrt())
    return {
        "codebook_use.png": _draw_use(counts),
        "codebook_use.tsv": _table("code", 0, tokens=counts, distance_to_nearest_code=distances),
        "codebook_spectrum.png": _draw_spectrum(spectrum, bits=float(np.log2(len(codes)))),
        "codebook_spectrum.tsv": _table("direction", 1, **spectrum._asdict()),
        "codebook_neighbours.png": _draw_neighbours(distances, error),
        "codebook_pca.png": _draw_pca(vectors, codes, counts, directions),
    }


def principal_directions(vectors: Float[Tensor, "num_vectors dim"]) -> Float[Tensor, "dim dim"]:
    """As columns, widest first."""
    covariance = torch.atleast_2d(torch.cov(vectors.double().T))
    return torch.linalg.eigh(covariance).eigenvectors.flip(1).float()


def measure_spectrum(
    vectors: Float[Tensor, "num_vectors dim"],
    indices: Int[Tensor, " num_vectors"],
    codes: Float[Tensor, "codebook_size dim"],
    directions: Float[Tensor, "dim dim"],
) -> Spectrum:
    variance = ((vectors - vectors.mean(0)) @ directions).double().square().mean(0)
    error = ((vectors - codes[indices]) @ directions).double().square().mean(0)
    bound = variance.clamp(max=water_level(variance, bits=float(np.log2(len(codes)))))
    return Spectrum(*((part / variance.sum()).numpy() for part in (variance, error, bound)))


def neighbour_distances(codes: Float[Tensor, "codebook_size dim"]) -> Float[Tensor, " codebook_size"]:
    """From each code to the nearest other one."""
    nearest = []
    for start in range(0, len(codes), 512):
        part = codes[start : start + 512]
        distances = torch.cdist(part, codes, compute_mode="donot_use_mm_for_euclid_dist")
        distances[torch.arange(len(part)), start + torch.arange(len(part))] = torch.inf
        nearest.append(distances.min(1).values)
    return torch.cat(nearest)


def _draw_use(counts: Int[np.ndarray, " codebook_size"]) -> bytes:
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    even = counts.sum() / len(counts)
    left.hist(counts, bins=min(60, len(counts)), color="tab:blue")
    left.axvline(even, color="0.4", linestyle="--", linewidth=1, label=f"even use, {even:.1f}")
    left.set(title=f"held-out tokens of a code ({(counts == 0).sum()} of {len(counts)} codes have none)")
    left.set(xlabel="tokens", ylabel="codes")
    right.step(np.arange(1, len(counts) + 1), np.sort(counts)[::-1] / even, where="mid", color="tab:blue")
    right.axhline(1, color="0.4", linestyle="--", linewidth=1, label="even use")
    right.set(title="frequencies, sorted", xlabel="code, by frequency", ylabel="frequency / even share", yscale="log")
    return _finished(figure)


def _draw_spectrum(spectrum: Spectrum, *, bits: float) -> bytes:
    figure = Figure(figsize=SIZE, layout="constrained")
    left, right = figure.subplots(1, 2)
    direction = np.arange(1, len(spectrum.variance) + 1)
    left.plot(direction, spectrum.variance, marker=".", label="latents")
    error = f"error, in all {spectrum.measured_error.sum():.3f}"
    left.plot(direction, spectrum.measured_error, marker=".", label=error)
    bound = f"Gaussian bound at {bits:.4g} bits, in all {spectrum.bound.sum():.3f}"
    left.plot(direction, spectrum.bound, linestyle="--", color="0.4", label=bound)
    left.set(title="variance along principal directions (held out)", xlabel="principal direction")
    left.set(ylabel="share of the total variance", yscale="log")
    right.plot(direction, spectrum.variance.cumsum(), marker=".", label="latents")
    right.set(title="variance in the first directions", xlabel="directions", ylabel="share of the total variance")
    right.set_ylim(0, 1.03)
    return _finished(figure)


def _draw_neighbours(distances: Float[np.ndarray, " codebook_size"], error: float) -> bytes:
    figure = Figure(figsize=(SIZE[0] / 2 + 0.5, SIZE[1]), layout="constrained")
    axes = figure.subplots()
    axes.hist(distances[distances < np.inf], bins=min(60, len(distances)), color="tab:blue")  # one code has no other
    axes.axvline(error, color="tab:red", linestyle="--", linewidth=1, label=f"rms held-out error, {error:.3g}")
    axes.set(title=f"distance to the nearest other code ({(distances == 0).sum()} at 0)")
    axes.set(xlabel="distance, latent units", ylabel="codes")
    return _finished(figure)


def _draw_pca(vectors: Tensor, codes: Tensor, counts: Int[np.ndarray, " size"], directions: Tensor) -> bytes:
    figure = Figure(figsize=(SIZE[0], 4.4), layout="constrained")
    mean = vectors.mean(0)
    chosen = torch.linspace(0, len(vectors) - 1, min(NUM_POINTS, len(vectors))).long()
    points = ((vectors[chosen] - mean) @ directions).numpy()
    places = ((codes - mean) @ directions).numpy()
    pairs = [pair for pair in ((0, 1), (2, 3)) if pair[1] < points.shape[1]] or [(0, 0)]
    for axes, (x, y) in zip(np.atleast_1d(figure.subplots(1, len(pairs))), pairs, strict=True):
        axes.scatter(points[:, x], points[:, y], s=2, color="0.75", label="held-out latents", rasterized=True)
        used = counts > 0
        axes.scatter(places[used, x], places[used, y], s=5, color="tab:blue", label="codes in use")
        axes.scatter(places[~used, x], places[~used, y], s=9, color="tab:red", marker="x", label="codes not in use")
        axes.set(title=f"principal directions {x + 1} and {y + 1} of the latents")
        axes.set(xlabel=f"direction {x + 1}, latent units", ylabel=f"direction {y + 1}, latent units")
    return _finished(figure)


def _finished(figure: Figure) -> bytes:
    for axes in figure.axes:
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_fontsize(8)
        axes.yaxis.label.set_fontsize(8)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return png_of_figure(figure)


def _table(index: str, first: int, **columns: np.ndarray) -> str:
    table = pd.DataFrame(columns)
    table.index = pd.RangeIndex(first, first + len(table), name=index)
    return table.to_csv(sep="\t", lineterminator="\n", float_format="%.6g")
