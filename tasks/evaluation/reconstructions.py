"""One shape through everything that was trained: grid, VAE, its twin where there is one, stage 1, stage 2."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from model.checkpoint import load_vae
from model.metrics import Field
from model.quantizer import ResidualQuantizer, normalised_error
from model.sdf import SparseSDF, Surface
from model.sparse import Grid, SparseTensor, from_arrays
from model.tokenizer import decoded_surface
from model.vae import SparseSDFVAE
from model.vqvae import VQVAE, load_vqvae
from tasks.data import Codebooks, load_codebooks
from tasks.evaluation.memory import PeakMemory
from tasks.run import STAGE2, TWIN, VAE

T = TypeVar("T")


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

    def then(self, second: "Cost") -> "Cost":
        """Of one after the other."""
        peaks = [peak for peak in (self.memory_mb, second.memory_mb) if peak is not None]
        return Cost(self.ms + second.ms, max(peaks, default=None))


class CodeUse:
    """A quantizer, and over all shapes so far their latents and the codes that these take."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        self.quantizer = quantizer
        self._latents: list[Tensor] = []
        self._indices: list[Tensor] = []

    @torch.no_grad()
    def quantize(self, z_e: SparseTensor) -> SparseTensor:
        """Each latent replaced by its codes."""
        indices = self.quantizer.indices_of(z_e.feats)
        self._latents.append(z_e.feats.cpu())
        self._indices.append(indices.cpu())
        return z_e.with_feats(self.quantizer.codes_of(indices))

    @property
    def counts(self) -> list[Int[Tensor, " codebook_size"]]:
        """How often each code of each level occurs."""
        columns = torch.cat(self._indices).unbind(1)
        return [torch.bincount(c, minlength=size) for c, size in zip(columns, self.quantizer.num_codes, strict=True)]

    @property
    def normalised_error(self) -> float:
        """Its reference are the same latents, all that were measured."""
        latents = torch.cat(self._latents)
        return normalised_error(latents, self.quantizer, reference=latents)


class Reconstructor:
    """The imported VAE, stage 1's codebook, stage 2's network and codes and, where it was trained, its twin."""

    def __init__(
        self, vae: SparseSDFVAE, codebooks: Codebooks, trained: VQVAE, twin: SparseSDFVAE | None = None
    ) -> None:
        self.device = trained.quantizer.device
        self.vae = vae
        self.trained = trained
        self.twin = twin
        self.use = {"stage1": CodeUse(ResidualQuantizer.of(codebooks)), "stage2": CodeUse(trained.quantizer)}

    @staticmethod
    def load(device: torch.device) -> "Reconstructor":
        """From the stages' outputs. Raises InputError naming the file that is missing or damaged."""
        codebooks = [codes.to(device) for codes in load_codebooks()]
        trained = load_vqvae(STAGE2, device=device).vqvae
        twin = load_vae(TWIN, device=device) if TWIN.is_dir() else None
        return Reconstructor(load_vae(VAE, device=device), codebooks, trained, twin)

    def rows(self, shape: SparseSDF) -> Iterator[Reconstruction]:
        """floor, vae, stage1, stage2 and, where there is one, twin, in this order."""
        mesh, cost = self._measure(shape.surface)
        yield Reconstruction("floor", mesh, stored_field(shape), decode_ms=cost.ms, memory_mb=cost.memory_mb)

        band = from_arrays(shape.coords, shape.sdf, extent=shape.resolution).to(self.device)
        z_e, encoding = self._measure(lambda: self.vae.encode(first_seen(band)).mean)
        yield self._decode("vae", self.vae, z_e, shape.resolution, encoding)

        trained, of_stage1, of_stage2 = self.trained, self.use["stage1"], self.use["stage2"]
        z_q, quantizing = self._measure(lambda: of_stage1.quantize(z_e))
        encoding = encoding.then(quantizing)
        yield self._decode("stage1", self.vae, z_q, shape.resolution, encoding, of_stage1.quantizer)

        z_q, encoding = self._measure(lambda: of_stage2.quantize(trained.encode(first_seen(band))))
        yield self._decode("stage2", trained.vae, z_q, shape.resolution, encoding, of_stage2.quantizer)

        if self.twin is not None:
            twin = self.twin
            z_e, encoding = self._measure(lambda: twin.encode(first_seen(band)).mean)
            yield self._decode("twin", twin, z_e, shape.resolution, encoding)

    def _decode(
        self,
        row: str,
        vae: SparseSDFVAE,
        latents: SparseTensor,
        resolution: int,
        encoding: Cost,
        quantizer: ResidualQuantizer | None = None,
    ) -> Reconstruction:
        """`quantizer` is what the latents went through, if any."""
        z = first_seen(latents)

        def decode() -> tuple[SparseTensor, Surface]:
            decoded = vae.decode_in_parts(z)
            return decoded, decoded_surface(decoded, z.grid, resolution=resolution)

        (decoded, mesh), decoding = self._measure(decode)
        return Reconstruction(
            row,
            mesh,
            Field(decoded.coords[:, 1:].cpu().numpy(), decoded.feats[:, 0].cpu().numpy(), resolution),
            num_tokens=len(z.grid) * len(quantizer.levels) if quantizer else None,
            bits=len(z.grid) * quantizer.bits if quantizer else None,
            encode_ms=encoding.ms,
            decode_ms=decoding.ms,
            memory_mb=encoding.then(decoding).memory_mb,
        )

    def _measure(self, work: Callable[[], T]) -> tuple[T, Cost]:
        """The result, and what it took until the device had it."""
        peak, start = PeakMemory(self.device), time.perf_counter()
        with torch.no_grad():
            result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return result, Cost(1000 * (time.perf_counter() - start), peak.megabytes())


def stored_field(shape: SparseSDF) -> Field:
    """The grid's own field: the band, and the sign alone in the rest of its bricks."""
    coords, signs = shape.beyond()
    return Field(np.concatenate([shape.coords, coords]), np.concatenate([shape.sdf, signs]), shape.resolution)


def first_seen(x: SparseTensor) -> SparseTensor:
    """The same on a grid of which nothing is known: else the first row alone would pay for finding the neighbours."""
    return SparseTensor.on(Grid(x.coords, num_shapes=x.grid.num_shapes, extent=x.grid.extent), x.feats)
