"""The factored SVD against the dense one of the sum it never forms, and its laws."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.aggregation import factored
from fedmoe.aggregation.factored import best_factors
from fedmoe.errors import AggregationError

EXPERTS = 3


@st.composite
def clients(draw):
    """Weights, alpha / rank, B and A of clients with ranks of their own, for three experts."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    out, inner = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    ranks = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    alphas = [draw(st.sampled_from([1.0, 4.0, 16.0])) for _ in ranks]

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = torch.rand(len(ranks), EXPERTS, generator=generator, dtype=torch.float64)
    weights[draw(st.integers(0, len(ranks) - 1)), draw(st.integers(0, EXPERTS - 1))] = 0
    scales = [alpha / rank for alpha, rank in zip(alphas, ranks, strict=True)]
    Bs = [random(EXPERTS, out, r) for r in ranks]
    return weights, scales, Bs, [random(EXPERTS, r, inner) for r in ranks]


def dense_sum(weights, scales, Bs, As):
    """The matrix of one expert, client by client."""
    total = torch.zeros(Bs[0].shape[0], As[0].shape[1], dtype=torch.float64)
    for w, s, B, A in zip(weights, scales, Bs, As, strict=True):
        total += w * s * (B.double() @ A.double())
    return total


def of_expert(round_, e):
    weights, scales, Bs, As = round_
    return weights[:, e], scales, [B[e] for B in Bs], [A[e] for A in As]


def padded(values, size):
    return torch.nn.functional.pad(values[:size], (0, max(0, size - len(values))))


each_way = pytest.mark.parametrize("largest_core", [1000, 0], ids=["qr", "gram"])


@each_way
@settings(max_examples=40)
@given(clients(), st.integers(1, 8))
def test_is_the_dense_svd_of_the_sum(largest_core, round_, rank):
    """And the error is the tail of the singular values: no factors of that rank come nearer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored, "LARGEST_CORE", largest_core)
        found = best_factors(*round_, rank)
    for e in range(EXPERTS):
        wanted = dense_sum(*of_expert(round_, e))
        u, s, vh = torch.linalg.svd(wanted, full_matrices=False)
        scale = float(s[0]) + 1e-300
        values = padded(found.values[e], len(s))
        torch.testing.assert_close(values / scale, s / scale, rtol=0, atol=1e-6)
        # The leading values, the ones that a rank keeps, are exact either way.
        torch.testing.assert_close(values[:rank] / scale, s[:rank] / scale, rtol=0, atol=1e-12)
        product = found.B[e] @ found.A[e]
        error, tail = (wanted - product).norm(), s[rank:].norm()
        assert abs(error - tail) <= 1e-6 * scale
        if rank >= len(s) or s[rank - 1] - s[rank] > 1e-3 * scale:  # else the best is not unique
            best = (u[:, :rank] * s[:rank]) @ vh[:rank]
            torch.testing.assert_close(product / scale, best / scale, rtol=0, atol=1e-6)


@settings(max_examples=25)
@given(clients(), st.integers(1, 8), st.randoms(use_true_random=False))
def test_the_order_of_the_clients_moves_no_more_than_a_rounding(round_, rank, random):
    order = random.sample(range(len(round_[1])), len(round_[1]))
    weights, *lists = round_
    shuffled = weights[order], *([some[i] for i in order] for some in lists)
    first, second = best_factors(*round_, rank), best_factors(*shuffled, rank)
    torch.testing.assert_close(first.values, second.values, rtol=1e-9, atol=1e-9)
    for e in range(EXPERTS):
        s = dense_sum(*of_expert(round_, e)).svd().S
        if rank >= len(s) or s[rank - 1] - s[rank] > 1e-3 * s[0]:
            products = [f.B[e] @ f.A[e] for f in (first, second)]
            torch.testing.assert_close(*products, rtol=1e-6, atol=1e-6)


@each_way
@settings(max_examples=25)
@given(clients(), st.integers(1, 8))
def test_all_experts_at_once_are_each_one_alone(largest_core, round_, rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored, "LARGEST_CORE", largest_core)
        together = best_factors(*round_, rank)
        for e in range(EXPERTS):
            alone = best_factors(*of_expert(round_, e), rank)
            torch.testing.assert_close(together.B[e] @ together.A[e], alone.B @ alone.A)
            torch.testing.assert_close(together.values[e], alone.values, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_way
def test_factors_have_the_rank_asked_for_and_their_values_split_evenly(
    monkeypatch, largest_core, dtype
):
    """Wider than the sum's own rank too: what is left over is zero, not noise."""
    monkeypatch.setattr(factored, "LARGEST_CORE", largest_core)
    generator = torch.Generator().manual_seed(0)
    Bs = [torch.randn(7, r, generator=generator, dtype=dtype) for r in (1, 2)]
    As = [torch.randn(r, 9, generator=generator, dtype=dtype) for r in (1, 2)]
    found = best_factors(torch.ones(2, dtype=dtype), [1.0, 0.5], Bs, As, rank=8)
    assert (found.B.shape, found.A.shape) == ((7, 8), (8, 9))
    assert found.B.dtype == found.A.dtype == dtype
    assert found.B[:, 3:].eq(0).all()
    assert found.A[3:].eq(0).all()
    for norms in (found.B.norm(dim=0)[:3], found.A.norm(dim=1)[:3]):
        torch.testing.assert_close(norms.double(), found.values[:3].sqrt(), rtol=1e-5, atol=0)


@each_way
def test_clients_that_agree_leave_the_rank_as_it_is(monkeypatch, largest_core):
    """Six stacked columns of rank three: rounding does not fill the other three."""
    monkeypatch.setattr(factored, "LARGEST_CORE", largest_core)
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(7, 3, generator=generator)
    A = torch.randn(3, 9, generator=generator)
    found = best_factors(torch.tensor([0.3, 0.7]), [1.0, 1.0], [B, B], [A, A], rank=6)
    torch.testing.assert_close(found.B @ found.A, B @ A)
    for rest in (found.B[:, 3:], found.A[3:]):  # to the bit: a message would carry -0.0
        assert rest.contiguous().view(torch.int32).eq(0).all()


@each_way
def test_signs_do_not_hang_on_lapack(monkeypatch, largest_core):
    """Negating a client's B and A leaves the sum, so it leaves the factors."""
    monkeypatch.setattr(factored, "LARGEST_CORE", largest_core)
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(20, 6, 4, generator=generator, dtype=torch.float64)
    A = torch.randn(20, 4, 5, generator=generator, dtype=torch.float64)
    found = best_factors(torch.ones(1, 20), [1.0], [B], [A], 3)
    again = best_factors(torch.ones(1, 20), [1.0], [-B.flip(-1)], [-A.flip(-2)], 3)
    torch.testing.assert_close(found.B, again.B, rtol=1e-9, atol=1e-9)
    largest = found.B.gather(-2, found.B.abs().argmax(-2, keepdim=True))
    assert (largest > 0).all()


@each_way
def test_alpha_over_rank_counts_each_client_by_its_own(monkeypatch, largest_core):
    monkeypatch.setattr(factored, "LARGEST_CORE", largest_core)
    one = torch.ones(1, 1)
    found = best_factors(torch.tensor([0.5, 0.5]), [2.0, 6.0], [one, one], [one, one], 1)
    torch.testing.assert_close(found.B @ found.A, torch.tensor([[4.0]]))


@each_way
def test_zeros_stay_zeros(monkeypatch, largest_core):
    """A weight of zero, and factors that are zero as B is at first."""
    monkeypatch.setattr(factored, "LARGEST_CORE", largest_core)
    B, A = torch.ones(2, 4, 2), torch.ones(2, 2, 5)
    weights = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    found = best_factors(weights, [1.0, 1.0], [torch.stack([B[0], 0 * B[1]]), B], [A, A], 3)
    for part in found:
        assert part.eq(0).all()


def test_no_clients_and_values_that_are_none_are_refused():
    B, A, one = torch.ones(4, 2), torch.ones(2, 5), torch.ones(1)
    with pytest.raises(AggregationError, match="no client factors"):
        best_factors(torch.ones(0), [], [], [], 1)
    for weights, scale, left, right in [
        (one * torch.nan, 1.0, B, A),
        (one, torch.inf, B, A),
        (one, 1.0, B * torch.nan, A),
        (one, 1.0, B, A * torch.inf),
    ]:
        with pytest.raises(AggregationError, match="not finite"):
            best_factors(weights, [scale], [left], [right], 1)
