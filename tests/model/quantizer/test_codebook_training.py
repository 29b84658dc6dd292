"""Codes that follow moving averages, and codes that are revived."""

import pytest
import torch

from model.quantizer import TrainedCodebook, kmeans, lloyd_pass


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


NEVER = 1  # the step that is made: no code is revived in it, and no later one
REVIVES = 10


def trained(*codebooks: torch.Tensor, **changes) -> TrainedCodebook:
    return TrainedCodebook(codebooks, **({"update": "ema", "decay": 0.9, "revive_below": 0.0} | changes))


def make_step(
    codebook: TrainedCodebook,
    vectors: torch.Tensor,
    *,
    lr: float = 0.0,
    number: int = NEVER,
    of: int = 100,
    seed: int = 0,
):
    optimizer = torch.optim.AdamW(list(codebook.codebooks), lr=lr, weight_decay=0.0)
    codebook(vectors).vq_loss.backward()
    optimizer.step()
    draws = torch.rand(len(vectors), generator=generator(seed), dtype=torch.float64)
    return int(codebook.end_step(number, of, draws=draws, optimizer=optimizer)), optimizer


def codes_of(codebook: TrainedCodebook, level: int = 0) -> torch.Tensor:
    return codebook.codebooks[level].detach()


# --- averages --------------------------------------------------------------------------------------------------------


def test_averages_are_those_of_the_definition():
    """n <- d n + (1 - d) share, m <- d m + (1 - d) mean over the batch of x, c = m / n; they start even."""
    vectors = torch.randn(300, 5, generator=generator())
    codes = torch.randn(7, 5, generator=generator(1))
    codebook = trained(codes)
    shares = torch.full((7,), 1 / 7, dtype=torch.float64)
    sums = codes.double() / 7
    for _ in range(3):
        seen = lloyd_pass(vectors, codes_of(codebook))
        shares = 0.9 * shares + 0.1 * seen.counts / 300
        sums = 0.9 * sums + 0.1 * seen.sums / 300
        make_step(codebook, vectors)
        torch.testing.assert_close(codebook.averages[0].shares, shares)
        torch.testing.assert_close(codes_of(codebook), (sums / shares[:, None]).float())


def test_the_second_level_follows_what_the_first_leaves():
    vectors = torch.randn(400, 3, generator=generator())
    first, second = torch.randn(6, 3, generator=generator(1)), 0.3 * torch.randn(9, 3, generator=generator(2))
    codebook = trained(first, second)
    left = vectors - first[lloyd_pass(vectors, first).indices]
    seen = lloyd_pass(left, second)
    make_step(codebook, vectors)
    shares = 0.9 / 9 + 0.1 * seen.counts / 400
    expected = ((0.9 / 9 * second.double() + 0.1 * seen.sums / 400) / shares[:, None]).float()
    torch.testing.assert_close(codes_of(codebook, 1), expected)


def test_levels_alone_are_what_they_are_together():
    """Training two levels leaves the first as training it alone does."""
    vectors = torch.randn(400, 3, generator=generator())
    first, second = torch.randn(6, 3, generator=generator(1)), 0.3 * torch.randn(9, 3, generator=generator(2))
    alone, together = trained(first, revive_below=0.2), trained(first, second, revive_below=0.2)
    for number in range(1, 21):
        make_step(alone, vectors, number=number)
        make_step(together, vectors, number=number)
    assert torch.equal(codes_of(alone), codes_of(together))


def test_the_first_step_leaves_a_converged_codebook_where_it_is():
    """Averages that started at 0, or at 1, would throw the codes of k-means about."""
    vectors = torch.randn(500, 3, generator=generator())
    codes = kmeans(vectors, 12, iterations=100, generator=generator())
    codebook = trained(codes)
    make_step(codebook, vectors)
    torch.testing.assert_close(codes_of(codebook), codes, atol=1e-6, rtol=0)


def test_a_code_that_gets_nothing_stays_finite_and_where_it_is():
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0]])
    codebook = trained(codes, decay=1 / 16)
    for _ in range(300):  # its share becomes 0
        make_step(codebook, vectors)
    assert codebook.averages[0].shares[1] == 0
    torch.testing.assert_close(codes_of(codebook)[1], codes[1], rtol=1e-6, atol=0)
    assert codes_of(codebook).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_batch_that_is_not_finite_moves_and_revives_nothing(bad: float):
    """As when half precision overflows in a step that loss scaling then skips."""
    vectors = torch.randn(100, 2, generator=generator())
    vectors[17, 1] = bad
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0]])
    codebook = trained(codes, revive_below=0.9)
    codebook.averages[0].shares[1] = 0
    before = {key: value.clone() for key, value in codebook.state_dict().items()}
    codebook(vectors)
    draws = torch.rand(100, generator=generator(), dtype=torch.float64)
    assert codebook.end_step(REVIVES, 100, draws=draws) == 0
    assert all(torch.equal(value, before[key]) for key, value in codebook.state_dict().items())


def test_codes_hold_still_in_the_last_tenth_of_the_steps():
    vectors = torch.randn(100, 2, generator=generator())
    codebook = trained(torch.randn(5, 2, generator=generator(1)), revive_below=0.9)
    moved = []
    for number in range(1, 21):
        before = codes_of(codebook).clone()
        make_step(codebook, vectors, number=number, of=20)
        moved.append(not torch.equal(codes_of(codebook), before))
    assert moved == [True] * 18 + [False] * 2


# --- revival ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_dead_code_moves_onto_a_vector_and_starts_anew(update):
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0], [0.5, 0.5], [-900.0, 0.0]])
    codebook = trained(codes, update=update, revive_below=0.1)
    averages = codebook.averages[0]
    averages.shares[[1, 3]] = 0.01
    num_revived, optimizer = make_step(codebook, vectors, lr=0.01 if update == "gradient" else 0.0, number=REVIVES)
    assert num_revived == 2
    for code in (1, 3):
        place = codes_of(codebook)[code]
        assert (vectors == place).all(1).any()
        even = averages.shares[code]
        alive = averages.shares[[0, 2]].sum()
        torch.testing.assert_close(even, (alive + 2 * 0.01 * 0.9) / 4)  # of the sum before
        torch.testing.assert_close(averages.sums[code], even * place.double())
        assert not optimizer.state[codebook.codebooks[0]]["exp_avg"][code].any()
        assert not optimizer.state[codebook.codebooks[0]]["exp_avg_sq"][code].any()
    assert optimizer.state[codebook.codebooks[0]]["exp_avg_sq"][0].any()
    assert len(codes_of(codebook).unique(dim=0)) == 4
    assert make_step(codebook, vectors, number=REVIVES)[0] == 0  # it is given time


@pytest.mark.parametrize(("number", "revived"), [(10, 1), (11, 0), (80, 1), (90, 0)])
def test_codes_are_revived_every_ten_steps_until_four_fifths_of_them(number: int, revived: int):
    vectors = torch.randn(100, 2, generator=generator())
    codebook = trained(torch.tensor([[0.0, 0.0], [500.0, 500.0]]), revive_below=0.1)
    codebook.averages[0].shares[1] = 0
    assert make_step(codebook, vectors, number=number)[0] == revived


def test_no_code_is_revived_without_need_or_where_it_is_switched_off():
    vectors = torch.randn(100, 2, generator=generator())
    codes = torch.tensor([[0.0, 0.0], [500.0, 500.0]])
    assert make_step(trained(codes, revive_below=0.1), vectors, number=REVIVES)[0] == 0  # its share is the even one yet
    codebook = trained(codes, revive_below=0.0)
    codebook.averages[0].shares[1] = 0
    assert make_step(codebook, vectors, number=REVIVES)[0] == 0


def test_revived_codes_are_never_twice_the_same():
    """Not even where a batch, drawn with replacement, has only two different vectors that are on no code."""
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]).repeat(30, 1)
    codes = torch.cat([torch.zeros(1, 2), 100 + torch.randn(6, 2, generator=generator())])
    codebook = trained(codes, revive_below=0.5)
    codebook.averages[0].shares[1:] = 0
    num_revived, _ = make_step(codebook, vectors, number=REVIVES)
    assert 1 <= num_revived <= 3
    assert len(codes_of(codebook).unique(dim=0)) == 7


def test_rolling_use_is_that_of_the_last_steps_and_not_of_one_batch():
    """Each batch holds 2 of 4 codes in use, of 8 in all; what was before the last steps is forgotten."""
    codes = torch.arange(8.0)[:, None] * 10
    codebook = trained(codes, decay=0.95)
    for step in range(400):
        used = [0, 1] if step < 200 else [2 * (step % 2), 2 * (step % 2) + 1]
        make_step(codebook, codes[used].repeat(3, 1))
    use = {name: float(value) for name, value in codebook.rolling_use().items()}
    assert use == pytest.approx({"codebook_usage": 0.5, "perplexity": 4.0}, rel=0.01)
