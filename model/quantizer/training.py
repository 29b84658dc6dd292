"""Codes in training: moved by moving averages or by the vq loss, and revived where they are dead."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from ..distributed import all_gather, all_reduce_sum
from .lloyd import arrival_times
from .quantizer import Quantized, ResidualQuantizer
from .statistics import entropy_of, numbers_of_levels

REVIVE_EVERY = 10  # steps
LAST_REVIVAL = 0.8  # of the steps: what is revived has time to find its place
LAST_MOVE = 0.9  # of the steps: then the decoder settles on codes that hold still
WINDOW = 20  # vectors a code, among which a code has to be expected to count as used


class TrainedCodebook(ResidualQuantizer):
    """A quantizer and moving averages, over steps, of what share of the vectors each code gets and of their sum.

    `end_step` does what a gradient can't: with update "ema" it moves the codes to the averages (van den Oord et al.
    2017, appendix A.1), and with revive_below > 0 it revives dead codes. The averages are buffers, so that a saved
    state has them. They are the same on all ranks.
    """

    averages: Sequence["_Averages"]

    def __init__(
        self,
        codebooks: Sequence[Float[Tensor, "_ dim"]],
        *,
        update: Literal["gradient", "ema"],
        decay: float,
        revive_below: float,
    ):
        """The averages start even: each code has the same share of the vectors, all of them where the code is."""
        super().__init__([len(codes) for codes in codebooks], codebooks[0].shape[1])
        self._update, self._decay, self._revive_below = update, decay, revive_below
        for level, codes in zip(self.levels, codebooks, strict=True):
            level.codebook.data = codes.detach().clone()
        self.averages = nn.ModuleList(_Averages(codes) for codes in codebooks)  # type: ignore[assignment]
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def by_gradient(self) -> bool:
        """Whether the codes are for an optimizer to move."""
        return self._update == "gradient"

    def forward(self, z_e: Float[Tensor, "num_vectors dim"]) -> Quantized:
        quantized = super().forward(z_e)
        self._seen = z_e.detach().float(), quantized.indices
        return quantized

    @torch.no_grad()
    def end_step(
        self,
        step: int,
        num_steps: int,
        *,
        draws: Float64[Tensor, " num_vectors"],
        optimizer: torch.optim.Optimizer | None = None,
        frozen: bool = False,
    ) -> Tensor:
        """Number of codes that were revived, after a step of so many, counted from 1.

        draws: a uniform number for each vector of forward(), to choose by. The optimizer forgets its moments of codes
        that it moves and that are revived. A batch with NaN or infinity, as loss scaling meets at times, moves nothing.
        Where codes are frozen, and in the last tenth of the steps, the averages alone go on.
        """
        assert self._seen is not None, "end_step comes after forward"
        vectors, indices = self._seen
        self._seen = None
        revived = torch.zeros((), device=vectors.device)
        given = self.residuals(vectors, indices)
        frozen = frozen or step > LAST_MOVE * num_steps
        revive = self._revive_below > 0 and step % REVIVE_EVERY == 0 and step <= LAST_REVIVAL * num_steps
        for level, averages, residual, column in zip(self.levels, self.averages, given, indices.unbind(1), strict=True):
            usable = averages.follow(residual, column, self._decay)
            if frozen:
                continue
            if self._update == "ema":
                level.codebook.copy_(averages.means(level.codebook))
            if revive and usable:
                revived += self._revive(level.codebook, averages, residual, column, draws, optimizer)
        return revived

    @torch.no_grad()
    def rolling_use(self) -> dict[str, Tensor]:
        """Usage and perplexity of each level over the last steps, by the averages, for a history.

        Usage is the share of the codes that is expected among WINDOW vectors a code, drawn as the averages say: what a
        batch happens to hold does not show in it. The first level's columns have no number.
        """
        figures = {}
        for number, averages in zip(numbers_of_levels(len(self.levels)), self.averages, strict=True):
            share = averages.shares / averages.shares.sum()
            figures[f"codebook_usage{number}"] = (1 - (1 - share) ** (WINDOW * len(share))).mean()
            figures[f"perplexity{number}"] = entropy_of(share).exp()
        return figures

    def _revive(
        self,
        codes: nn.Parameter,
        averages: "_Averages",
        vectors: Float[Tensor, "num_vectors dim"],
        indices: Int[Tensor, " num_vectors"],
        draws: Float64[Tensor, " num_vectors"],
        optimizer: torch.optim.Optimizer | None,
    ) -> int:
        """Dead codes, which get less than a share of the even share, move onto vectors drawn by their squared error.

        A code starts anew there: with the even share in the averages, and without the optimizer's moments.
        """
        even = averages.shares.sum() / len(codes)
        dead = (averages.shares < self._revive_below * even).nonzero().flatten()
        if not len(dead):
            return 0
        errors = (vectors - codes[indices]).square().sum(1)
        places = _drawn_by_error(vectors, errors, draws, len(dead))
        dead = dead[: len(places)]
        codes[dead] = places
        averages.shares[dead] = even
        averages.sums[dead] = even * places.double()
        for moment in optimizer.state[codes].values() if optimizer is not None and codes in optimizer.state else ():
            if moment.shape == codes.shape:
                moment[dead] = 0
        return len(dead)


class _Averages(nn.Module):
    """Of one level of codes, over the steps: the share of a batch's vectors that each gets, and their sum over all."""

    shares: Float64[Tensor, " codebook_size"]
    sums: Float64[Tensor, "codebook_size dim"]

    def __init__(self, codes: Float[Tensor, "codebook_size dim"]):
        super().__init__()
        self.register_buffer("shares", codes.new_full((len(codes),), 1 / len(codes), dtype=torch.float64))
        self.register_buffer("sums", codes.detach().double() / len(codes))

    def follow(
        self, vectors: Float[Tensor, "num_vectors dim"], indices: Int[Tensor, " num_vectors"], decay: float
    ) -> Bool[Tensor, ""]:
        """Whether the batch could be used: there are vectors, and all are finite."""
        rows = F.pad(vectors.double(), (0, 1), value=1.0)  # the last column counts; bincount would wait for the GPU
        sums = all_reduce_sum(rows.new_zeros(len(self.sums), rows.shape[1]).index_add_(0, indices, rows))
        sums, counts = sums[:, :-1], sums[:, -1]
        total = counts.sum()
        usable = sums.isfinite().all() & (total > 0)
        weight = usable.double() * (1 - decay)
        self.shares.lerp_(counts / total.clamp(min=1), weight)
        self.sums.lerp_(torch.where(usable, sums, 0.0) / total.clamp(min=1), weight)
        return usable

    def means(self, codes: Float[Tensor, "codebook_size dim"]) -> Float[Tensor, "codebook_size dim"]:
        """What the codes move to: the vectors' averages; `codes` where a code has got none for very long."""
        known = self.shares[:, None] > 0
        return torch.where(known, self.sums / self.shares[:, None], codes.double()).to(codes.dtype)


def _drawn_by_error(
    vectors: Float[Tensor, "num_vectors dim"],
    squared_errors: Float[Tensor, " num_vectors"],
    draws: Float64[Tensor, " num_vectors"],
    count: int,
) -> Float[Tensor, "num_drawn dim"]:
    """At most `count` vectors of all ranks, no two alike, none where a code is already."""
    times, rows = arrival_times(squared_errors, draws).sort()
    rows = rows[times.isfinite()][:count]
    entry = torch.full((count, 1 + vectors.shape[1]), torch.inf, dtype=torch.float64, device=vectors.device)
    entry[: len(rows), 0] = times[: len(rows)]
    entry[: len(rows), 1:] = vectors[rows].double()
    entries = all_gather(entry)
    entries = entries[entries[:, 0].argsort(stable=True)[:count]]
    return entries[entries[:, 0].isfinite(), 1:].unique(dim=0).to(vectors.dtype)
