"""The expert fast path against a loop over tokens and chosen experts, and against transformers."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fedmoe.models import experts, routed
from fedmoe.models.experts import SparseExperts, experts_forward
from fedmoe.models.routed import can_group, route

WIDTH, INNER, RANK, SCALE = 6, 5, 2, 1.5
NAMES = ("x", "weights", "w1", "w2", "a1", "b1", "a2", "b2")


def slow_experts(x, weights, index, w1, w2, factors, act):
    """The formula, one token and one chosen expert at a time; autograd differentiates it."""
    a1, b1, a2, b2 = factors
    rows = []
    for t in range(len(x)):
        y = x[t] * 0
        for j, e in enumerate(index[t].tolist()):
            if e == len(w1):
                continue
            gate, up = ((w1[e] + SCALE * b1[e] @ a1[e]) @ x[t]).chunk(2)
            y = y + weights[t, j] * ((w2[e] + SCALE * b2[e] @ a2[e]) @ (act(gate) * up))
        rows.append(y)
    return torch.stack(rows)


def fast_experts(x, weights, index, w1, w2, factors, act):
    return SparseExperts.apply(x, weights, w1, w2, *factors, SCALE, route(index, len(w1)), act)


def draw(
    tokens, size, seed, sentinels=0.0, dtype=torch.float64, width=WIDTH, inner=INNER, rank=RANK
):
    """Random leaves (as in NAMES) and a choice of distinct experts per token."""
    num_experts, top_k = size
    g = torch.Generator().manual_seed(seed)
    shapes = [
        (tokens, width),
        (tokens, top_k),
        (num_experts, 2 * inner, width),
        (num_experts, width, inner),
        (num_experts, rank, width),
        (num_experts, 2 * inner, rank),
        (num_experts, rank, inner),
        (num_experts, width, rank),
    ]
    leaves = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype) for s in shapes]
    index = torch.rand(tokens, num_experts, generator=g).argsort(-1)[:, :top_k]
    index[torch.rand(tokens, top_k, generator=g) < sentinels] = num_experts
    return [leaf.requires_grad_() for leaf in leaves], index


def outcome(function, leaves, index, act):
    """The output, and the gradient of every leaf under a fixed random weighting of the output."""
    x, weights, w1, w2, *factors = leaves
    out = function(x, weights, index, w1, w2, factors, act)
    weighting = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    grads = torch.autograd.grad((out * weighting).sum(), wanted, allow_unused=True)
    return [out.detach(), *(torch.zeros(()) if g is None else g for g in grads)]


sizes = st.integers(1, 6).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, e)))


@settings(max_examples=40)
@given(
    st.integers(1, 7),
    sizes,
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.sampled_from([nn.SiLU(), nn.GELU(), nn.Tanh(), nn.ReLU(), nn.Identity()]),
)
def test_values_and_all_gradients_match_the_loop(tokens, size, seed, sentinels, act):
    leaves, index = draw(tokens, size, seed, sentinels)
    ours, slow = (outcome(f, leaves, index, act) for f in (fast_experts, slow_experts))
    for name, a, b in zip(("out", *NAMES), ours, slow, strict=True):
        torch.testing.assert_close(
            a, b.expand_as(a).to(a.dtype), rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_gradients_match_finite_differences(top_k):
    leaves, index = draw(3, (4, top_k), seed=top_k, sentinels=0.2)
    routing = route(index, 4)

    def call(x, weights, w1, w2, *factors):
        return SparseExperts.apply(x, weights, w1, w2, *factors, SCALE, routing, nn.SiLU())

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_low_precision_stays_near_float64(dtype, tolerance):
    """Relative error, in the norm of each tensor; the loop sees the same rounded inputs."""
    leaves, index = draw(40, (6, 3), seed=1, sentinels=0.1, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = outcome(fast_experts, leaves, index, nn.SiLU())
    slow = outcome(slow_experts, exact, index, nn.SiLU())
    for name, a, b in zip(("out", *NAMES), ours, slow, strict=True):
        assert a.dtype == dtype, name
        assert (a.double() - b).norm() <= tolerance * b.norm(), name


GROUPED = {"width": 8, "inner": 12, "rank": 4}
"""Multiples of 16 bytes in fp32: what torch's grouped product asks for."""


def relative_error(ours, exact):
    return max(
        ((a.double() - b).norm() / b.norm().clamp(min=1e-12)).item()
        for a, b in zip(ours, exact, strict=True)
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 9), sizes, st.integers(0, 2**31), st.sampled_from([0.0, 0.4]), st.integers(1, 12)
)
def test_grouped_products_and_blocks_match_the_loop(
    monkeypatch, tokens, size, seed, sentinels, block_rows
):
    monkeypatch.setattr(routed, "BLOCK_ROWS", block_rows)
    leaves, index = draw(tokens, size, seed, sentinels, torch.float32, **GROUPED)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    parts = list(routed.blocks(route(index, size[0]), can_group(leaves[0], *GROUPED.values())))
    assert all(part.ends is not None for part in parts)
    slow = outcome(slow_experts, exact, index, nn.SiLU())
    if (index < size[0]).any():
        assert relative_error(outcome(fast_experts, leaves, index, nn.SiLU()), slow) < 1e-5


@pytest.fixture
def untold(monkeypatch):
    """The way of a GPU: the host knows no sizes; what a GPU may not have written is NaN."""
    grouped_mm = nn.functional.grouped_mm

    def torn(a, b, offs):
        out = grouped_mm(a, b, offs=offs)
        if b.dim() == 2:
            out[offs.diff(prepend=offs.new_zeros(1)) == 0] = torch.nan
        return out

    for module in (routed, experts):
        monkeypatch.setattr(module, "unwaited", lambda x: True)
    monkeypatch.setattr(nn.functional, "grouped_mm", torn)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("sentinels", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("widths", [GROUPED, {}], ids=["grouped", "looped"])
@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU()], ids=["silu", "gelu"])
def test_rows_of_no_expert_leave_nothing_behind(untold, sentinels, widths, act):
    leaves, index = draw(9, (5, 2), 3, sentinels, torch.float32, **widths)
    index[index == 1] = 5  # an expert without rows
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert route(index, 5).sizes is None
    ours, slow = (
        outcome(function, given, index, act)
        for function, given in ((fast_experts, leaves), (slow_experts, exact))
    )
    for name, a, b in zip(("out", *NAMES), ours, slow, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm(), name


@pytest.mark.parametrize("widths", [GROUPED, {}], ids=["grouped", "looped"])
def test_recomputation_is_bitwise_identical_and_other_blocks_agree_within_rounding(
    monkeypatch, widths
):
    """Order of a product's sums depends on its shape and so on the blocks on some processors."""
    leaves, index = draw(40, (6, 3), seed=7, sentinels=0.1, dtype=torch.float32, **widths)
    whole = outcome(fast_experts, leaves, index, nn.SiLU())

    def recomputed(x, weights, index, w1, w2, factors, act):
        routing = route(index, len(w1))
        return SparseExperts.apply(x, weights, w1, w2, *factors, SCALE, routing, act, True)

    for block_rows in (2048, 30, 1):
        monkeypatch.setattr(routed, "BLOCK_ROWS", block_rows)
        kept, again = (outcome(f, leaves, index, nn.SiLU()) for f in (fast_experts, recomputed))
        assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))
        assert relative_error(kept, whole) < 1e-5


def test_recomputation_keeps_only_inputs():
    leaves, index = draw(40, (6, 3), seed=7)
    x, weights, w1, w2, *factors = leaves
    kept = []
    for recompute in (False, True):
        out = SparseExperts.apply(
            x, weights, w1, w2, *factors, SCALE, route(index, 6), nn.SiLU(), recompute
        )
        kept.append(len(out.grad_fn.saved_tensors))
    assert kept == [8 + 3, 8]


def test_an_expert_with_many_rows_is_looped_and_one_with_few_is_grouped():
    few, many = torch.arange(6).repeat(10), torch.arange(6).repeat(routed.GROUPED_ROWS + 1)
    for choice, grouped in ((few, True), (many, False)):
        (block,) = routed.blocks(route(choice.unsqueeze(1), 6), grouped=True)
        assert (block.ends is not None) == grouped


def test_products_that_are_compiled_for_their_rows_meet_few_numbers_of_them(monkeypatch):
    met = set()
    for place, name in ((torch, "mm"), (torch.Tensor, "addmm_")):
        product = getattr(place, name)

        def noted(*args, product=product, **settings):
            met.add(args[-2].shape[0])
            return product(*args, **settings)

        monkeypatch.setattr(place, name, noted)
    every = torch.arange(700).remainder(3).sort().values[150:].unsqueeze(1)
    index = torch.cat([every, every.new_full((3, 1), 3)])
    leaves, _ = draw(len(index), (4, 1), seed=5, dtype=torch.bfloat16, width=8, inner=16, rank=8)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = outcome(fast_experts, leaves, index, nn.SiLU())
    assert {n % routed.EVEN_ROWS for n in met if n > 2 * routed.EVEN_ROWS} == {0}
    monkeypatch.undo()
    assert relative_error(found, outcome(slow_experts, exact, index, nn.SiLU())) < 2e-2


@pytest.mark.parametrize(("dtype", "wider"), [(torch.float32, 8), (torch.float16, 8)])
def test_a_rank_made_groupable_with_zeros_changes_no_value_and_no_gradient(dtype, wider):
    def widened(x, weights, index, w1, w2, factors, act):
        wide = routed.groupable(factors)
        assert {wide[0].shape[1], wide[1].shape[2], wide[2].shape[1], wide[3].shape[2]} == {wider}
        assert can_group(x, 8, 16, wider)
        assert not can_group(x, 8, 16, 5)
        return fast_experts(x, weights, index, w1, w2, wide, act)

    leaves, index = draw(30, (4, 2), seed=5, dtype=dtype, width=8, inner=16, rank=5)
    found, wanted = (outcome(f, leaves, index, nn.SiLU()) for f in (widened, fast_experts))
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3}[dtype]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    kept = routed.groupable([leaf.detach().float() for leaf in draw(1, (2, 1), 0, rank=8)[0][4:]])
    assert kept[0].shape[1] == 8


def test_slots_add_up_as_rows_do():
    """The order-proof sum that CUDA needs, on a CPU."""
    leaves, index = draw(12, (5, 3), seed=3, sentinels=0.3)
    x, routing = leaves[0].detach(), route(index, 5)
    rows = torch.randn(len(routing.slot), WIDTH, dtype=x.dtype)
    (block,) = routed.blocks(routing, grouped=False)
    by_row, by_slot = torch.ones_like(x), torch.ones_like(x)
    experts.add_rows(by_row, rows, block)
    experts.add_slots(by_slot, rows, block, index.shape[1])
    torch.testing.assert_close(by_row, by_slot)


def test_frozen_weights_get_no_gradient_and_change_no_other():
    leaves, index = draw(5, (4, 2), seed=2)
    trained = outcome(fast_experts, leaves, index, nn.SiLU())
    for frozen in leaves[2:4]:
        frozen.requires_grad_(False)
    x, weights, w1, w2, *factors = leaves
    out = fast_experts(x, weights, index, w1, w2, factors, nn.SiLU())
    with torch.no_grad():
        raw = SparseExperts.backward(out.grad_fn, torch.ones_like(out))
    assert raw[2] is None
    assert raw[3] is None
    del trained[3:5]
    frozen_run = outcome(fast_experts, leaves, index, nn.SiLU())
    assert all(torch.equal(a, b) for a, b in zip(frozen_run, trained, strict=True))


def test_an_expert_without_tokens_gets_exactly_zero():
    leaves, index = draw(6, (5, 2), seed=3)
    index[index == 1] = 5
    _, *grads = outcome(fast_experts, leaves, index, nn.SiLU())
    for name, grad in zip(NAMES[2:], grads[2:], strict=True):
        assert grad[1].eq(0).all(), name
        assert grad[0].ne(0).any(), name


def test_a_token_without_experts_is_zero_and_has_no_gradient():
    leaves, index = draw(6, (5, 2), seed=4)
    index[2] = 5
    out, dx, dweights, *_ = outcome(fast_experts, leaves, index, nn.SiLU())
    for name, tensor in {"out": out, "x": dx, "weights": dweights}.items():
        assert tensor[2].eq(0).all(), name
        assert tensor[[0, 1, 3, 4, 5]].ne(0).any(1).all(), name


def test_an_empty_routing_gives_zeros():
    leaves, index = draw(4, (3, 2), seed=5)
    index[:] = 3
    assert all(part.eq(0).all() for part in outcome(fast_experts, leaves, index, nn.SiLU()))


@settings(max_examples=40)
@given(st.integers(1, 9), sizes, st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_route_groups_every_chosen_slot_by_expert(tokens, size, seed, sentinels):
    _, index = draw(tokens, size, seed, sentinels)
    routing = route(index, size[0])
    expected = [
        [t * size[1] + j for t in range(tokens) for j in range(size[1]) if index[t, j] == e]
        for e in range(size[0])
    ]
    assert [rows.tolist() for rows in routing.slot.split(routing.sizes)] == expected
    assert routing.counts.tolist() == routing.sizes
    assert routing.token.tolist() == [slot // size[1] for slots in expected for slot in slots]


@pytest.mark.parametrize("act", ["silu", "gelu", "relu2"])
@pytest.mark.parametrize("top_k", [1, 4])
def test_the_registered_path_matches_transformers_eager_experts(tiny_base, act, top_k):
    """Relative error 1e-5: values, and gradients of the input, the router and the weights."""
    block = tiny_base(hidden_act=act).model.layers[0].mlp.requires_grad_(True)
    block.gate.top_k = top_k
    ours = copy.deepcopy(block)
    ours.experts.forward = lambda *a: experts_forward(ours.experts, *a)
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for module in (block, ours):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in module.parameters())])
    assert len(results[0]) == 5
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_padding_reaches_no_expert_and_is_not_counted(tiny_base):
    module = tiny_base().model.layers[0].mlp.experts
    state = experts.ExpertState(
        valid=torch.tensor([True, False, True]), counts=torch.zeros(8).long()
    )
    setattr(module, experts.STATE, state)
    index = torch.tensor([[0, 1], [2, 3], [1, 7]])
    x, weights = torch.ones(3, 32), torch.ones(3, 2)
    out = experts_forward(module, x, index, weights)
    assert out[1].eq(0).all()
    assert state.counts is not None
    assert state.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 1]
