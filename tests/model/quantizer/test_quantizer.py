import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from torch.utils._python_dispatch import TorchDispatchMode

from model.quantizer import (
    ResidualQuantizer,
    VectorQuantizer,
    codebook_statistics,
    gaussian_error_bound,
    quantizer,
    spectrum,
)
from model.quantizer.quantizer import LARGEST_HALF, UNDERFLOW, halves, max_rounding, nearest_codes
from model.quantizer.statistics import usage_of_batch
from tests.model import numpy_reference


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def filled(size: int, dim: int) -> VectorQuantizer:
    vq = VectorQuantizer(size, dim)
    torch.nn.init.normal_(vq.codebook)
    return vq


# --- the nearest code ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dim"), [(1, 3), (2, 1), (100, 8), (513, 64)])
def test_nearest_code_is_that_of_brute_force_in_float64(size, dim):
    z, codebook = torch.randn(500, dim), torch.randn(size, dim)
    indices = nearest_codes(z, codebook)
    assert indices.dtype == torch.int64
    np.testing.assert_array_equal(indices.numpy(), numpy_reference.nearest_codes(z.numpy(), codebook.numpy()))


def test_a_large_common_offset_does_not_blur_the_distances():
    """At mean 1000, |z - c|^2 from |z|^2 - 2 z.c + |c|^2 would lose everything below 0.1 in float32."""
    z, codebook = 1000 + torch.randn(500, 16), 1000 + torch.randn(200, 16)
    expected = numpy_reference.nearest_codes(z.numpy(), codebook.numpy())
    np.testing.assert_array_equal(nearest_codes(z, codebook).numpy(), expected)


def test_a_tie_goes_to_the_lower_index():
    codebook = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])
    z = torch.tensor([[0.0, 0.0], [0.5, 0.5], [2.0, 0.0], [-1.0, -1.0]])
    assert nearest_codes(z, codebook).tolist() == [1, 1, 0, 2]


@pytest.mark.parametrize("size", [7, 64, 1000])
def test_of_equal_codes_only_the_first_is_used(size):
    once = torch.randn(size, 24)
    assert nearest_codes(torch.randn(3000, 24), torch.cat([once, once, once[:5]])).max() < size


def test_a_code_is_its_own_nearest():
    codebook = torch.randn(300, 8)
    assert nearest_codes(codebook, codebook).tolist() == list(range(300))


def far_clusters(num: int, *, distance: float) -> torch.Tensor:
    return torch.cat([torch.randn(num // 2, 64), distance + torch.randn(num // 2, 64)])


def nearly_equidistant() -> tuple[torch.Tensor, torch.Tensor]:
    """Each vector has two codes at distances that differ by 0 to 3 millionths, the nearer one first or second."""
    z = torch.randn(300, 64)
    one, two = torch.nn.functional.normalize(torch.randn(2, 300, 64), dim=2)
    return z, torch.cat([z + one, z + two * (1 + 3e-6 * (torch.rand(300, 1) - 0.5))])


def hostile() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    repeated = torch.randn(70, 64)
    return {
        "an offset of 10 sigma": (10 + torch.randn(500, 64), 10 + torch.randn(300, 64)),
        "clusters 100 sigma apart": (far_clusters(500, distance=100), far_clusters(300, distance=100)),
        "clusters 10 000 sigma apart": (far_clusters(500, distance=1e4), far_clusters(300, distance=1e4)),
        "repeated codes": (torch.randn(500, 64), torch.cat([repeated, repeated[:30]])),
        "repeated vectors on a code": (repeated[:1].repeat(150, 1), repeated),
        "near ties": nearly_equidistant(),
        "one wide channel": (torch.randn(500, 64) * torch.tensor([1e4] + [1.0] * 63), torch.randn(300, 64)),
        "close to underflow": (1e-18 * torch.randn(500, 64), 1e-18 * torch.randn(300, 64)),
    }


@pytest.mark.parametrize("case", hostile())
def test_only_ties_within_a_millionth_have_another_index_than_in_float64(case):
    z, codebook = hostile()[case]
    indices = nearest_codes(z, codebook)
    squared = (z.double()[:, None] - codebook.double()).square().sum(2)
    least, nearest = squared.min(1)
    chosen = squared.gather(1, indices[:, None])[:, 0]
    assert (chosen <= (1 + 1e-6) * least).all()
    clear = squared.scatter(1, nearest[:, None], torch.inf).min(1).values > (1 + 1e-6) * least
    assert torch.equal(indices[clear], nearest[clear])


@pytest.mark.parametrize("case", hostile())
def test_what_float32_does_not_doubt_is_right(case):
    z, codebook = hostile()[case]
    indices, doubtful = quantizer.nearest_by_blocks(z, codebook, codebook.mean(0))
    expected = torch.from_numpy(numpy_reference.nearest_codes(z.numpy(), codebook.numpy()))
    assert torch.equal(indices[~doubtful], expected[~doubtful])


def test_few_vectors_are_doubtful():
    _, doubtful = quantizer.nearest_by_blocks(torch.randn(2000, 64), torch.randn(1000, 64), torch.zeros(64))
    assert doubtful.double().mean() < 0.01


def cut_off(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    return np.trunc(values / unit) * unit


def last_place(values: np.ndarray) -> np.ndarray:
    """What the 24th bit of each value is worth."""
    return np.exp2(np.floor(np.log2(np.maximum(np.abs(values), 1e-30))) - 23)


def tensor_core_product(x: torch.Tensor, codes: torch.Tensor, start: np.ndarray) -> np.ndarray:
    """start + x codes^T as a coarse tensor core has it: four exact products and the sum so far, all of them cut off at
    the last place of the largest, then added, and cut off again (Fasi et al. 2021)."""
    total = start
    for k in range(0, x.shape[1], 4):
        products = x[:, None, k : k + 4].double().numpy() * codes[None, :, k : k + 4].double().numpy()
        addends = np.concatenate([total[:, :, None], products], 2)
        total = cut_off(addends, last_place(np.abs(addends).max(2, keepdims=True))).sum(2)
        total = cut_off(total, last_place(total))
    return total


@pytest.mark.parametrize("case", hostile())
def test_scores_by_halves_on_a_tensor_core_are_within_the_bound(case):
    """The arithmetic of model/quantizer_cuda.py, written out: half of the bound is for each of two scores."""
    z, codebook = (part[:100] for part in hostile()[case])
    origin = codebook.mean(0)
    x, codes = z - origin, codebook.double() - origin.double()
    unit_x, unit_codes = (largest / LARGEST_HALF for largest in (x.abs().amax(1, keepdim=True), codes.abs().max()))
    x_high, x_low = halves(x / unit_x)
    c_high, c_low = halves(codes / unit_codes)
    product = tensor_core_product(x_high, c_low, np.zeros((len(x), len(codes))))
    product = tensor_core_product(x_low, c_high, product)
    product = tensor_core_product(x_high, c_high, product)
    half_squares = (codes.square().sum(1) / 2).float()
    scores = half_squares - torch.from_numpy(product).float() * (unit_x * unit_codes.float())

    exact = z.double() - origin.double()
    norm, distance = exact.norm(dim=1), torch.cdist(exact, codes).min(1).values
    reach = (norm + distance)[:, None]
    error = (scores.double() - (codes.square().sum(1) / 2 - exact @ codes.T)).abs()
    relevant = codes.norm(dim=1) <= reach
    assert relevant.any(1).all()
    assert (error < max_rounding(64) / 2 * reach.square() + UNDERFLOW / 2)[relevant].all()


def test_two_halves_hold_22_bits():
    values = torch.randn(10_000, dtype=torch.float64) * LARGEST_HALF / 8
    high, low = halves(values)
    assert (high.double() + low.double() - values).abs().le(2.0**-22 * values.abs() + 2.0**-25).all()


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.num_elements = max(self.num_elements, result.numel())
        return result


def test_memory_is_bounded_by_blocks_that_change_nothing(monkeypatch):
    z, codebook = torch.randn(5000, 2), torch.randn(100, 2)
    expected = nearest_codes(z, codebook)
    monkeypatch.setattr(quantizer, "MAX_SCORES", 30_000)  # of 500 000
    with LargestTensor() as largest:
        indices = nearest_codes(z, codebook)
    assert torch.equal(indices, expected)
    assert largest.num_elements <= 30_000


def test_a_block_is_never_smaller_than_one_vector(monkeypatch):
    monkeypatch.setattr(quantizer, "MAX_SCORES", 1)
    z, codebook = torch.randn(5, 2), torch.randn(10, 2)
    expected = numpy_reference.nearest_codes(z.numpy(), codebook.numpy())
    np.testing.assert_array_equal(nearest_codes(z, codebook).numpy(), expected)


def test_no_vectors_have_no_codes():
    assert nearest_codes(torch.zeros(0, 4), torch.randn(3, 4)).shape == (0,)


def test_another_dimension_is_refused():
    """By the checked shapes of the signature here, by a ValueError where those are off."""
    with pytest.raises((ValueError, TypeCheckError), match=r"latents have 3 channels but codes have 4|nearest_codes"):
        nearest_codes(torch.zeros(2, 3), torch.zeros(5, 4))


# --- quantisation ----------------------------------------------------------------------------------------------------


def test_the_straight_through_gradient_is_exactly_one():
    vq, z_e = filled(50, 4), torch.randn(200, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(vq(z_e).z_q.sum(), z_e)
    assert torch.equal(gradient, torch.ones(200, 4))


def test_any_gradient_of_z_q_is_that_of_z_e_and_the_codes_get_none():
    """The straight-through gradient is 1."""
    vq, z_e = filled(50, 4), torch.randn(200, 4, requires_grad=True)
    upstream = torch.randn(200, 4)
    for_z, for_codes = torch.autograd.grad(vq(z_e).z_q, [z_e, vq.codebook], upstream, allow_unused=True)
    assert torch.equal(for_z, upstream)
    assert for_codes is None


def test_z_q_is_the_nearest_code_to_the_bit():
    """Written as z + (code - z) it would be rounded."""
    vq, z_e = filled(50, 4), 100 * torch.randn(200, 4)
    quantized = vq(z_e)
    assert torch.equal(quantized.z_q, vq.codebook[quantized.indices])
    np.testing.assert_array_equal(
        quantized.indices.numpy(), numpy_reference.nearest_codes(z_e.numpy(), vq.codebook.detach().numpy())
    )


def test_the_vq_term_moves_only_the_codes_and_commitment_only_the_encoder():
    """Gradients by hand: 2 (e - z) / (N D), summed over the vectors of a code, and 2 (z - e) / (N D)."""
    vq, z_e = filled(10, 4), torch.randn(200, 4, requires_grad=True)
    quantized = vq(z_e)
    losses = quantized.vq_loss, quantized.commitment_loss
    gradients = [torch.autograd.grad(loss, [z_e, vq.codebook], allow_unused=True, retain_graph=True) for loss in losses]
    z, codes = z_e.detach().double().numpy(), vq.codebook.detach().double().numpy()
    indices = numpy_reference.nearest_codes(z, codes)
    for loss in losses:
        assert loss.item() == pytest.approx(np.square(z - codes[indices]).mean(), rel=1e-6)
    (vq_for_z, vq_for_codes), (commitment_for_z, commitment_for_codes) = gradients
    assert vq_for_z is commitment_for_codes is None
    slope = 2 * (z - codes[indices]) / z.size
    of_codes = np.zeros_like(codes)
    np.add.at(of_codes, indices, -slope)
    np.testing.assert_allclose(vq_for_codes.numpy(), of_codes, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(commitment_for_z.numpy(), slope, rtol=1e-4, atol=1e-7)


def test_the_gradient_of_the_codes_is_the_same_to_the_bit_each_time():
    """Many vectors to a code, and threads: a sum in whatever order they arrive differs within a few repetitions."""
    vq, z_e = filled(64, 64), torch.randn(8192, 64)
    first = torch.autograd.grad(vq(z_e).vq_loss, vq.codebook)[0]
    assert all(torch.equal(torch.autograd.grad(vq(z_e).vq_loss, vq.codebook)[0], first) for _ in range(20))


def test_uniform_use_has_the_perplexity_of_the_codebook_size():
    use = codebook_statistics(torch.full((64,), 5))
    assert use.num_tokens == 320
    assert use.usage == 1
    assert use.perplexity == pytest.approx(64)
    assert use.entropy_bits == pytest.approx(6)
    assert use.top_share == pytest.approx(1 / 64)


def test_one_code_for_everything_has_perplexity_one():
    use = codebook_statistics(torch.tensor([0, 7, 0, 0]))
    assert (use.usage, use.perplexity, use.entropy_bits, use.top_share) == (0.25, 1, 0, 1)


def test_statistics_of_a_half_a_quarter_a_quarter():
    use = codebook_statistics(torch.tensor([2, 1, 1, 0]))
    assert use.entropy_bits == pytest.approx(1.5)
    assert use.perplexity == pytest.approx(2**1.5)
    assert (use.usage, use.top_share) == (0.75, 0.5)
    assert math.log2(use.perplexity) == pytest.approx(use.entropy_bits)


def test_a_step_on_the_vq_term_alone_ends_at_the_mean():
    """With one code the minimum of the vq term is the mean of the vectors."""
    vq, z_e = VectorQuantizer(1, 3), torch.randn(100, 3)
    (gradient,) = torch.autograd.grad(vq(z_e).vq_loss, vq.codebook)
    newton = vq.codebook - gradient / (2 / 3)  # the Hessian is 2 / D
    torch.testing.assert_close(newton, z_e.mean(0, keepdim=True))


def test_under_autocast_everything_is_float32():
    vq, z_e = filled(50, 4), torch.randn(200, 4)
    with torch.autocast("cpu", torch.bfloat16):
        quantized = vq(z_e)
        indices = nearest_codes(z_e, vq.codebook)
    plain = vq(z_e)
    assert {quantized.z_q.dtype, quantized.vq_loss.dtype, quantized.commitment_loss.dtype} == {torch.float32}
    assert torch.equal(quantized.indices, plain.indices)
    assert torch.equal(indices, plain.indices)
    assert torch.equal(quantized.vq_loss, plain.vq_loss)


def test_without_levels_nothing_is_quantised():
    z_e = torch.randn(20, 4, requires_grad=True)
    quantized = ResidualQuantizer([], 4)(z_e)
    assert torch.equal(quantized.z_q, z_e)
    assert quantized.indices.shape == (20, 0)
    assert (quantized.vq_loss, quantized.commitment_loss) == (0, 0)
    assert torch.equal(torch.autograd.grad(quantized.z_q.sum(), z_e)[0], torch.ones(20, 4))


# --- what a codebook's use says --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "usage", "perplexity", "entropy_bits", "top_share"),
    [([5] * 64, 1, 64, 6, 1 / 64), ([0, 7, 0, 0], 0.25, 1, 0, 1), ([2, 1, 1, 0], 0.75, 2**1.5, 1.5, 0.5)],
)
def test_the_statistics_of_known_counts(counts, usage, perplexity, entropy_bits, top_share):
    """The perplexity of uniform use is the number of codes."""
    found = astuple(codebook_statistics(torch.tensor(counts)))
    assert found == pytest.approx((sum(counts), usage, perplexity, entropy_bits, top_share))


def test_without_tokens_there_are_no_statistics():
    with pytest.raises(ValueError, match="no tokens"):
        codebook_statistics(torch.zeros(4, dtype=torch.int64))


def test_usage_within_a_batch_is_that_of_its_counts():
    indices = torch.randint(50, (300,), generator=torch.Generator().manual_seed(0))
    usage, perplexity = usage_of_batch(indices, 64)
    expected = codebook_statistics(torch.bincount(indices, minlength=64))
    assert usage.item() == pytest.approx(expected.usage)
    assert perplexity.item() == pytest.approx(expected.perplexity, rel=1e-5)


@pytest.mark.parametrize(("dim", "share"), [(16, 2 ** (-2 * 13 / 16)), (64, 2 ** (-2 * 13 / 64))])
def test_the_bound_of_white_vectors_is_the_closed_form(dim: int, share: float):
    """Every direction gets bits / dim bits, and an error of 2^(-2 bits / dim) of its variance."""
    vectors = torch.randn(4 * dim, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    white = torch.linalg.qr(vectors - vectors.mean(0))[0]
    assert gaussian_error_bound(white, bits=13.0) == pytest.approx(share, rel=1e-6)


def test_the_bound_gives_no_bits_to_a_direction_below_the_water():
    """Variances 1 and 1/64 at 1 bit: all of it goes to the first, whose error is 1/4; the second is lost whole."""
    plane = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.125], [0.0, -0.125]])
    assert gaussian_error_bound(plane[:, :1], bits=1.0) == pytest.approx(1 / 4, rel=1e-6)
    assert gaussian_error_bound(plane, bits=1.0) == pytest.approx((1 / 4 + 1 / 64) / (1 + 1 / 64), rel=1e-6)


def test_spectrum_of_known_variances():
    """Variances 8, 4, 2, 1, 1: the first, two and four directions hold 8, 12 and 15 sixteenths."""
    basis = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))[0]
    corners = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0]).sqrt().diag()
    vectors = torch.cat([corners, -corners]) @ basis
    assert spectrum(vectors) == pytest.approx({"1": 8 / 16, "2": 12 / 16, "4": 15 / 16}, rel=1e-5)
