"""A codebook trained on fixed vectors: by the vq loss, or by moving averages; dead codes revived."""

from typing import Literal

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from ..distributed import all_gather, all_reduce_sum, own_part
from .lloyd import lloyd_pass, race
from .quantizer import Quantized, VectorQuantizer


class TrainedCodebook(nn.Module):
    """A quantizer and moving averages, over steps, of how many vectors each code gets and of their sum.

    Half of the recipe is the quantizer's own vq loss; `end_step` does what a gradient can't: with update "ema" it moves
    the codes to the averages (van den Oord et al. 2017, appendix A.1), and with revive_below > 0 it revives dead codes.
    The averages are buffers, so that a saved state has them.
    """

    counts: Float64[Tensor, " codebook_size"]
    sums: Float64[Tensor, "codebook_size dim"]

    def __init__(
        self,
        codes: Float[Tensor, "codebook_size dim"],
        vectors: Float[Tensor, "num_vectors dim"],
        *,
        update: Literal["gradient", "ema"],
        decay: float,
        revive_below: float,
        batch_size: int,
    ):
        """The averages start at n * code, n being the vectors of a batch that the code would get, on average."""
        super().__init__()
        self.quantizer = VectorQuantizer.of(codes)
        self._update, self._decay, self._revive_below = update, decay, revive_below
        share = all_reduce_sum(lloyd_pass(own_part(vectors), codes).counts).double() / len(vectors)
        self.register_buffer("counts", share * batch_size)
        self.register_buffer("sums", self.counts[:, None] * codes.double())
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def codebook(self) -> nn.Parameter:
        return self.quantizer.codebook

    def forward(self, vectors: Float[Tensor, "num_vectors dim"]) -> tuple[Quantized, Int[Tensor, " codebook_size"]]:
        """Also how often each code occurs, on all ranks."""
        quantized = self.quantizer(vectors)
        self._seen = vectors, quantized.indices
        counts = torch.bincount(quantized.indices, minlength=len(self.codebook))
        return quantized, all_reduce_sum(counts)

    @torch.no_grad()
    def end_step(
        self, optimizer: torch.optim.Optimizer, *, draws: Float64[Tensor, " num_vectors"], revive: bool
    ) -> Tensor:
        """Number of codes that were revived. draws: a uniform number for each vector of forward(), to choose by."""
        assert self._seen is not None, "end_step comes after forward"
        vectors, indices = self._seen
        counts = torch.bincount(indices, minlength=len(self.counts)).double()
        sums = torch.zeros_like(self.sums).index_add_(0, indices, vectors.double())
        self.counts.lerp_(all_reduce_sum(counts), 1 - self._decay)
        self.sums.lerp_(all_reduce_sum(sums), 1 - self._decay)
        if self._update == "ema":
            known = self.counts[:, None] > 0
            self.codebook.copy_(torch.where(known, self.sums / self.counts[:, None], self.codebook.double()))
        return self._revive(vectors, indices, draws, optimizer) if revive else self.counts.new_zeros(())

    def _revive(self, vectors: Tensor, indices: Tensor, draws: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
        """Dead codes, which get less than a share of the even share, move onto vectors drawn by their squared error.

        A code starts anew there: with the even share in the averages, and without the optimizer's moments.
        """
        even = self.counts.sum() / len(self.counts)
        dead = (self.counts < self._revive_below * even).nonzero().flatten()
        if len(dead):
            errors = (vectors - self.codebook[indices]).square().sum(1)
            places = _drawn_by_error(vectors, errors, draws, len(dead))
            dead = dead[: len(places)]
            self.codebook[dead] = places
            self.counts[dead] = even
            self.sums[dead] = even * places.double()
            for moment in optimizer.state[self.codebook].values():
                if moment.shape == self.codebook.shape:
                    moment[dead] = 0
        return self.counts.new_tensor(len(dead))


def _drawn_by_error(vectors: Tensor, squared_errors: Tensor, draws: Tensor, count: int) -> Tensor:
    """At most `count` vectors of all ranks, no two alike, none where a code is already."""
    times, rows = race(squared_errors, draws).sort()
    rows = rows[times.isfinite()][:count]
    entry = torch.full((count, 1 + vectors.shape[1]), torch.inf, dtype=torch.float64, device=vectors.device)
    entry[: len(rows), 0] = times[: len(rows)]
    entry[: len(rows), 1:] = vectors[rows].double()
    entries = all_gather(entry)
    entries = entries[entries[:, 0].argsort(stable=True)[:count]]
    return entries[entries[:, 0].isfinite(), 1:].unique(dim=0).to(vectors.dtype)
