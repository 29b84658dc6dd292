import numpy as np
import pytest
import torch

from model.errors import InputError
from model.quantizer import kmeans, lloyd_pass
from model.quantizer.lloyd import _draw, _update
from tests.model import numpy_reference


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(num: int, *, members: int = 40, dim: int = 4, spread: float = 0.01) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres far apart from one another beside the spread, and their members."""
    centres = torch.randn(num, dim, generator=generator(1))
    noise = torch.randn(num, members, dim, generator=generator(2)) * spread
    return centres, (centres[:, None] + noise).flatten(0, 1)


def mean_error(vectors: torch.Tensor, codes: torch.Tensor) -> float:
    return float(lloyd_pass(vectors, codes).squared_errors.mean())


def test_well_separated_clusters_are_found():
    _, vectors = clusters(20)
    codes = kmeans(vectors, 20, iterations=10, generator=generator())
    means = vectors.view(20, 40, 4).mean(1)
    distance = torch.cdist(means, codes)
    assert distance.min(1).values.max() < 1e-5
    assert sorted(distance.argmin(1).tolist()) == list(range(20))


def test_with_the_codes_it_asks_for_every_distinct_vector_is_a_code():
    vectors = torch.randn(30, 3, generator=generator())
    codes = kmeans(vectors, 30, iterations=3, generator=generator())
    assert torch.equal(codes.unique(dim=0), vectors.unique(dim=0))


def test_fewer_distinct_vectors_than_codes_are_refused():
    vectors = torch.randn(9, 3, generator=generator()).repeat(100, 1)
    with pytest.raises(InputError, match=r"9 distinct latent vectors for 10 codes; set codebook\.num_codes lower"):
        kmeans(vectors, 10, iterations=3, generator=generator())
    kmeans(vectors, 9, iterations=3, generator=generator())


@pytest.mark.parametrize(("iterations", "seed"), [(1, 0), (2, 1), (10, 2)])
def test_no_code_is_empty(iterations, seed):
    """Also where most vectors crowd in one place and the rest lies far out."""
    crowd = torch.randn(2000, 4, generator=generator(seed)) * 0.02
    far = torch.randn(60, 4, generator=generator(seed + 100)) * 5
    vectors = torch.cat([crowd, far])
    codes = kmeans(vectors, 300, iterations=iterations, generator=generator(seed))
    assert lloyd_pass(vectors, codes).counts.min() > 0


def test_repeats_of_a_vector_count_once():
    """A pattern that every shape has must not draw codes, nor means, to itself."""
    vectors = torch.randn(400, 3, generator=generator())
    often = torch.cat([vectors, vectors[:1].repeat(10_000, 1)])
    once = kmeans(vectors, 20, iterations=10, generator=generator())
    torch.testing.assert_close(kmeans(often, 20, iterations=10, generator=generator()), once)


def test_the_order_of_vectors_means_nothing():
    vectors = torch.randn(400, 3, generator=generator())
    shuffled = vectors[torch.randperm(400, generator=generator(1))]
    first, second = (kmeans(v, 20, iterations=5, generator=generator()) for v in (vectors, shuffled))
    torch.testing.assert_close(second, first)


def test_seeds_are_drawn_in_proportion_to_the_error():
    weights = torch.tensor([0.0, 3.0, 1e-30, 1.0, 0.0])
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = torch.cat([_draw(weights, u[None]) for u in uniform])
    assert torch.bincount(drawn, minlength=5).tolist() == [0, 3000, 0, 1000, 0]
    assert int(_draw(torch.zeros(3), uniform[:1])) in range(3)


def test_the_seed_decides():
    vectors = torch.randn(400, 3, generator=generator())
    first, again, other = (kmeans(vectors, 20, iterations=2, generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_iterations_and_more_codes_lower_the_error():
    vectors = torch.randn(1000, 4, generator=generator())

    def error(size: int, iterations: int) -> float:
        return mean_error(vectors, kmeans(vectors, size, iterations=iterations, generator=generator()))

    assert error(50, 10) < error(50, 3) < error(50, 1)
    assert error(100, 3) < error(50, 3) < error(10, 3)


def test_a_uniform_line_is_cut_into_equal_parts():
    """The optimum for K codes on [0, 1] has error 1 / (12 K^2)."""
    line = torch.linspace(0, 1, 2001)[:, None]
    codes = kmeans(line, 4, iterations=60, generator=generator())
    assert mean_error(line, codes) == pytest.approx(1 / (12 * 4**2), rel=0.05)


def test_offset_data_is_clustered_as_well():
    _, vectors = clusters(20, spread=0.05)
    here = mean_error(vectors, kmeans(vectors, 20, iterations=10, generator=generator()))
    far = mean_error(vectors + 1000, kmeans(vectors + 1000, 20, iterations=10, generator=generator()))
    assert far == pytest.approx(here, rel=0.02)


def test_a_pass_counts_sums_and_errors():
    vectors, codes = torch.randn(200, 3, generator=generator()), torch.randn(7, 3, generator=generator(1))
    result = lloyd_pass(vectors, codes)
    indices = torch.from_numpy(numpy_reference.nearest_codes(vectors.numpy(), codes.numpy()))
    assert torch.equal(result.indices, indices)
    for code in range(7):
        own = vectors[indices == code]
        assert result.counts[code] == len(own)
        torch.testing.assert_close(result.sums[code], own.double().sum(0))
    torch.testing.assert_close(result.squared_errors, (vectors - codes[indices]).square().sum(1))


def test_an_empty_code_is_never_put_onto_another():
    """The first code moves onto its one member, whose error was the largest; the empty one has to go elsewhere."""
    vectors = torch.tensor([[10.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    codes = torch.tensor([[50.0, 0.0], [0.3, 0.3], [0.0, 900.0]])
    before = lloyd_pass(vectors, codes)
    before = before._replace(indices=torch.tensor([0, 1, 1, 1]), counts=torch.tensor([1, 3, 0]))
    before.sums[:2] = torch.stack([vectors[0], vectors[1:].sum(0)]).double()
    moved = _update(codes, vectors, before, torch.full((4,), 0.5, dtype=torch.float64))
    assert len(moved.unique(dim=0)) == 3
    assert (vectors[1:] == moved[2]).all(1).any()


def test_empty_codes_move_to_where_the_error_is():
    """Two codes for the crowd, two far from everything: the far ones end on members of the worst codes."""
    vectors = torch.cat([torch.randn(50, 2, generator=generator()), 8 + torch.randn(50, 2, generator=generator(1))])
    codes = torch.tensor([[0.0, 0.0], [8.0, 8.0], [500.0, 0.0], [0.0, 500.0]])
    before = lloyd_pass(vectors, codes)
    assert before.counts.tolist() == [50, 50, 0, 0]
    moved = _update(codes, vectors, before, torch.rand(100, generator=generator(), dtype=torch.float64))
    after = lloyd_pass(vectors, moved)
    assert torch.allclose(moved[:2], torch.stack([vectors[:50].mean(0), vectors[50:].mean(0)]), atol=1e-5)
    assert after.counts.min() > 0
    assert {int(before.indices[(vectors == code).all(1)]) for code in moved[2:]} == {0, 1}
    assert after.squared_errors.sum() < before.squared_errors.sum()


# --- hostile distributions -------------------------------------------------------------------------------------------


def test_an_offset_of_ten_standard_deviations_changes_nothing():
    vectors = torch.randn(4000, 16, generator=generator())
    here = kmeans(vectors, 50, iterations=10, generator=generator())
    far = kmeans(vectors + 10, 50, iterations=10, generator=generator())
    assert mean_error(vectors + 10, far) == pytest.approx(mean_error(vectors, here), rel=0.01)
    assert lloyd_pass(vectors + 10, far).counts.min() > 0


def test_a_third_of_exact_repeats_gets_one_code():
    """30 % of the vectors are one point: one code sits near it, the rest serve the others as well as without it."""
    others = torch.randn(2800, 8, generator=generator())
    vectors = torch.cat([others, others[:1].repeat(1200, 1)])
    codes = kmeans(vectors, 40, iterations=15, generator=generator())
    assert mean_error(others, codes) == pytest.approx(
        mean_error(others, kmeans(others, 40, iterations=15, generator=generator())), rel=0.02
    )
    assert lloyd_pass(vectors, codes).counts.min() > 0


@pytest.mark.parametrize("distance", [1e2, 1e4])
def test_two_far_clusters_share_the_codes_and_are_each_cut_well(distance):
    """Rounding at 10 000 standard deviations is 0.001 of one: it must not blur which code of a cluster is nearest."""
    near, far = torch.randn(2, 2000, 8, generator=generator())
    far = far + distance
    codes = kmeans(torch.cat([near, far]), 60, iterations=15, generator=generator())
    for cluster in (near, far):
        own = lloyd_pass(cluster, codes)
        assert 20 <= (own.counts > 0).sum() <= 40
        alone = kmeans(cluster, int((own.counts > 0).sum()), iterations=15, generator=generator())
        assert own.squared_errors.mean() == pytest.approx(mean_error(cluster, alone), rel=0.05)
        np.testing.assert_array_equal(own.indices, numpy_reference.nearest_codes(cluster.numpy(), codes.numpy()))
