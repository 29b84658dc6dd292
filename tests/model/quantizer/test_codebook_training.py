"""Codes that follow moving averages, and codes that are revived."""

import pytest
import torch

from model.quantizer import TrainedCodebook, kmeans, lloyd_pass


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(codes: torch.Tensor, vectors: torch.Tensor, **changes) -> TrainedCodebook:
    arguments = {"update": "ema", "decay": 0.9, "revive_below": 0.0, "batch_size": len(vectors)} | changes
    return TrainedCodebook(codes, vectors, **arguments)


def step(codebook: TrainedCodebook, vectors: torch.Tensor, *, lr: float = 0.0, revive: bool = False, seed: int = 0):
    optimizer = torch.optim.AdamW([codebook.codebook], lr=lr, weight_decay=0.0)
    quantized, _ = codebook(vectors)
    quantized.vq_loss.backward()
    optimizer.step()
    draws = torch.rand(len(vectors), generator=generator(seed), dtype=torch.float64)
    return int(codebook.end_step(optimizer, draws=draws, revive=revive)), optimizer


def test_averages_are_those_of_the_definition():
    """N <- d N + (1 - d) n, m <- d m + (1 - d) sum of x, c = m / N; they start at N = n, m = n c."""
    vectors = torch.randn(300, 5, generator=generator())
    codes = torch.randn(7, 5, generator=generator(1))
    codebook = trained(codes, vectors)
    counts = lloyd_pass(vectors, codes).counts.double()
    sums = counts[:, None] * codes.double()
    for _ in range(3):
        seen = lloyd_pass(vectors, codebook.codebook.detach())
        counts = 0.9 * counts + 0.1 * seen.counts
        sums = 0.9 * sums + 0.1 * seen.sums
        step(codebook, vectors)
        torch.testing.assert_close(codebook.counts, counts)
        torch.testing.assert_close(codebook.codebook.detach(), (sums / counts[:, None]).float())


def test_the_first_step_leaves_a_converged_codebook_where_it_is():
    """Averages that started at 0, or at 1, would throw the codes of k-means about."""
    vectors = torch.randn(500, 3, generator=generator())
    codes = kmeans(vectors, 12, iterations=100, generator=generator())
    codebook = trained(codes, vectors)
    step(codebook, vectors)
    torch.testing.assert_close(codebook.codebook.detach(), codes, atol=1e-6, rtol=0)


def test_a_code_that_gets_nothing_stays_finite_and_where_it_is():
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0]])
    codebook = trained(codes, vectors)
    for _ in range(50):
        step(codebook, vectors)
    assert torch.equal(codebook.codebook[1].detach(), codes[1])
    assert codebook.codebook.isfinite().all()


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_dead_code_moves_onto_a_vector_and_starts_anew(update):
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0], [0.5, 0.5], [-900.0, 0.0]])
    codebook = trained(codes, vectors, update=update, revive_below=0.1)
    num_revived, optimizer = step(codebook, vectors, lr=0.01 if update == "gradient" else 0.0, revive=True)
    assert num_revived == 2
    for code in (1, 3):
        place = codebook.codebook[code].detach()
        assert (vectors == place).all(1).any()
        even = codebook.counts.sum() / (2 * 25 + codebook.counts[[0, 2]].sum()) * 25
        torch.testing.assert_close(codebook.counts[code], even)
        torch.testing.assert_close(codebook.sums[code], codebook.counts[code] * place.double())
        assert not optimizer.state[codebook.codebook]["exp_avg"][code].any()
        assert not optimizer.state[codebook.codebook]["exp_avg_sq"][code].any()
    assert optimizer.state[codebook.codebook]["exp_avg_sq"][0].any()
    assert len(codebook.codebook.unique(dim=0)) == 4
    assert step(codebook, vectors, revive=True)[0] == 0  # it is given time


def test_no_code_is_revived_without_leave_or_without_need():
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0]])
    assert step(trained(codes, vectors, revive_below=0.1), vectors, revive=False)[0] == 0
    assert step(trained(codes, vectors, revive_below=0.0), vectors, revive=True)[0] == 0


def test_revived_codes_are_never_twice_the_same():
    """Not even where a batch, drawn with replacement, has only two different vectors that are on no code."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]).repeat(30, 1)
    codes = torch.cat([torch.zeros(1, 2), 100 + torch.randn(6, 2, generator=generator())])
    codebook = trained(codes, vectors, revive_below=0.5)
    codebook.counts[1:] = 0
    num_revived, _ = step(codebook, vectors, revive=True)
    assert 1 <= num_revived <= 3
    assert len(codebook.codebook.unique(dim=0)) == 7
