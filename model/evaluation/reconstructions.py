"""One shape through the grid and through everything that was trained."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..distributed import gather_lists
from ..metrics import Field
from ..quantizer import ResidualQuantizer, normalised_error
from ..sdf import SparseSDF, Surface, grid_surface
from ..sparse import Grid, SparseTensor, from_arrays
from ..tokenizer import decoded_surface
from ..vqvae import VQVAE

T = TypeVar("T")
MB = 1e6


@dataclass(frozen=True)
class Reconstruction:
    """A shape as one row of the evaluation shows it; what the row does not have is None."""

    row: str
    mesh: Surface  # in the [-1, 1] cube
    field: Field | None = None  # that the mesh was drawn from
    num_tokens: int | None = None
    bits: float | None = None  # of the tokens, were codes equally frequent; where they lie is not counted
    encode_ms: float | None = None  # band voxels to latents, or tokens
    decode_ms: float | None = None  # latents, or tokens, to a mesh
    memory_mb: float | None = None  # the peak of both


class Cost(NamedTuple):
    ms: float
    memory_mb: float | None


class PeakMemory:
    """The highest mark since this was made: on a GPU what its tensors took, else what the whole process held.

    The process's mark is Linux's; elsewhere there is none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._marked = device, True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the mark VmHWM
        except OSError:
            self._marked = False

    def megabytes(self) -> float | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / MB
        if not self._marked:
            return None
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return float(lines["VmHWM"].split()[0]) * 1024 / MB


class CodeUse:
    """A quantizer, and of all shapes that were counted their latents and the codes that these take."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        self.quantizer = quantizer
        self._last: tuple[Tensor, Tensor]
        self._counted: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def quantize(self, z_e: SparseTensor) -> SparseTensor:
        """Each latent replaced by its codes."""
        indices = self.quantizer.indices_of(z_e.feats)
        self._last = z_e.feats.cpu(), indices.cpu()
        return z_e.with_feats(self.quantizer.codes_of(indices))

    def count(self, name: str) -> None:
        """What was quantized last, as the shape of this name."""
        self._counted[name] = self._last

    def _all(self, which: int) -> Tensor:
        """In the order of names, whatever that of the shapes: sums of floats depend on it."""
        return torch.cat([self._counted[name][which] for name in sorted(self._counted)])

    def gather(self) -> None:
        """The first rank takes over what all have counted."""
        self._counted = dict(gather_lists(list(self._counted.items())))

    @property
    def counts(self) -> list[Int[Tensor, " codebook_size"]]:
        """How often each code of each level occurs."""
        columns = self._all(1).unbind(1)
        return [torch.bincount(c, minlength=size) for c, size in zip(columns, self.quantizer.num_codes, strict=True)]

    @property
    def normalised_error(self) -> float:
        """Its reference are the same latents, all that were measured."""
        latents = self._all(0)
        return normalised_error(latents, self.quantizer, reference=latents)


class Reconstructor:
    """A shape through the grid and through networks, each a row; one without levels of codes does not quantise."""

    def __init__(self, networks: Mapping[str, VQVAE], device: torch.device) -> None:
        self._networks = {row: network.to(device).eval() for row, network in networks.items()}
        self._device = device
        self.use = {row: CodeUse(n.quantizer) for row, n in self._networks.items() if n.quantizer.levels}

    def rows(self, shape: SparseSDF) -> Iterator[Reconstruction]:
        """floor, then one for each network, in their order."""
        mesh, cost = self._measure(lambda: grid_surface(shape))
        yield Reconstruction("floor", mesh, stored_field(shape), decode_ms=cost.ms, memory_mb=cost.memory_mb)
        band = from_arrays(shape.coords, shape.sdf, extent=shape.resolution).to(self._device)
        for row in self._networks:
            yield self._through(row, band, shape.resolution)

    def count_codes(self, name: str) -> None:
        """Have the codes of the last shape count, under this name: its rows came out well."""
        for use in self.use.values():
            use.count(name)

    def _through(self, row: str, band: SparseTensor, resolution: int) -> Reconstruction:
        network, use = self._networks[row], self.use.get(row)

        def encode() -> SparseTensor:
            z_e = network.encode(first_seen(band))
            return z_e if use is None else use.quantize(z_e)

        def decode() -> tuple[SparseTensor, Surface]:
            decoded = network.vae.decode_in_parts(z)
            return decoded, decoded_surface(decoded, z.grid, resolution=resolution)

        latents, encoding = self._measure(encode)
        z = first_seen(latents)
        (decoded, mesh), decoding = self._measure(decode)
        return Reconstruction(
            row,
            mesh,
            Field(decoded.coords[:, 1:].cpu().numpy(), decoded.feats[:, 0].cpu().numpy(), resolution),
            num_tokens=None if use is None else len(z.grid) * len(use.quantizer.levels),
            bits=None if use is None else len(z.grid) * use.quantizer.bits,
            encode_ms=encoding.ms,
            decode_ms=decoding.ms,
            memory_mb=max((c.memory_mb for c in (encoding, decoding) if c.memory_mb is not None), default=None),
        )

    def _measure(self, work: Callable[[], T]) -> tuple[T, Cost]:
        """The result, and what it took until the device had it."""
        peak, start = PeakMemory(self._device), time.perf_counter()
        with torch.no_grad():
            result = work()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result, Cost(1000 * (time.perf_counter() - start), peak.megabytes())


def stored_field(shape: SparseSDF) -> Field:
    """The grid's own field: the band, and the sign alone in the rest of its bricks."""
    coords, signs = shape.beyond()
    return Field(np.concatenate([shape.coords, coords]), np.concatenate([shape.sdf, signs]), shape.resolution)


def first_seen(x: SparseTensor) -> SparseTensor:
    """The same on a grid of which nothing is known: else the first row alone would pay for finding the neighbours."""
    return SparseTensor.on(Grid(x.coords, num_shapes=x.grid.num_shapes, extent=x.grid.extent), x.feats)
