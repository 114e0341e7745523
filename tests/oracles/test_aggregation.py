"""FedAvg and Flame against a loop over single numbers, and the laws of every weighted mean."""

import math
import weakref
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.adapter import Adapter, Layout
from fedmoe.aggregation import FedAvg, Flame, streaming
from fedmoe.aggregation.blocks import Blocks
from fedmoe.aggregation.mean import TierShares
from fedmoe.aggregation.streaming import TOGETHER, Weights, weighted_mean
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update
from fedmoe.rounds import ServerState, finish_round

LAYERS, EXPERTS = 2, 3
LAYOUT = Layout.of(
    [
        ("l0.A", (EXPERTS, 2, 4), 0),
        ("l0.B", (EXPERTS, 4, 2), 0),
        ("l1.A", (EXPERTS, 2), 1),
        ("q.A", (2, 5), None),
    ],
    LAYERS,
    EXPERTS,
    rank=2,
    alpha=4.0,
)
STRATEGIES = [
    FedAvg(),
    Flame(),
    Flame(temperature=0.5),
    Flame(temperature=0.0),
    Flame(frequency="per_choice"),
    Flame(unit="step", temperature=1.0),
    Flame(floor=0.5, temperature=1.0),
]


def update_of(client, examples, tokens, counts, delta, **changes):
    fields = {
        "round": 1,
        "client": client,
        "tier": "t",
        "top_k": 1,
        "rescaler": torch.ones(LAYERS),
        "delta": Adapter(LAYOUT, delta),
        "counts": counts,
        "examples": examples,
        "tokens": tokens,
        "steps": 1,
        "loss_before": 1.0,
        "loss_after": 1.0,
        "seconds": 1.0,
        "peak_bytes": 1,
    }
    return Update(**(fields | changes))


@st.composite
def rounds(draw):
    """A global adapter and one to five updates; counts are often zero, as deltas of those are."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    updates = []
    for client in range(draw(st.integers(1, 5))):
        tokens = draw(st.integers(1, 400))
        count = st.just(0) | st.integers(0, tokens)
        rows = st.lists(st.lists(count, min_size=EXPERTS, max_size=EXPERTS), min_size=2, max_size=2)
        counts = torch.tensor(draw(rows))
        delta = torch.randn(LAYOUT.size, generator=generator)
        for entry, view in LAYOUT.views(delta):
            if entry.layer is not None:
                view[counts[entry.layer] == 0] = 0
        more = {"top_k": draw(st.integers(1, 4)), "steps": draw(st.integers(1, 9))}
        size = draw(st.integers(1, 10**6))
        updates.append(update_of(client, size, tokens, counts, delta, **more))
    return Adapter(LAYOUT, torch.randn(LAYOUT.size, generator=generator)), updates


def slow_weight(strategy, update, layer, expert):
    """gamma as the papers write it, for one number of one client."""
    if isinstance(strategy, FedAvg) or layer is None:
        return float(update.examples)
    total = update.steps if strategy.unit == "step" else update.tokens
    choices = update.top_k if strategy.frequency == "per_choice" else 1
    row = [int(a) / (total * choices) for a in update.counts[layer]]
    used = row[expert] and max(row[expert], strategy.floor * sum(row) / len(row))
    return math.pow(used, strategy.temperature) * update.examples


def slow_combine(strategy, adapter, updates):
    """The weighted mean, one number of the adapter at a time, in Python floats."""
    out = adapter.flat.tolist()
    for entry in LAYOUT.entries:
        per_expert = math.prod(entry.shape[1:])
        for i in range(entry.start, entry.stop):
            expert = (i - entry.start) // per_expert
            weights = [slow_weight(strategy, u, entry.layer, expert) for u in updates]
            if sum(weights) > 0:
                moves = [w * float(u.delta.flat[i]) for w, u in zip(weights, updates, strict=True)]
                out[i] += sum(moves) / sum(weights)
    return torch.tensor(out)


each_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)


@each_strategy
@settings(max_examples=15)
@given(rounds())
def test_matches_the_slow_loop(strategy, round_):
    combined = strategy.combine(*round_)
    torch.testing.assert_close(combined.flat, slow_combine(strategy, *round_), rtol=2e-7, atol=1e-9)


@settings(max_examples=50)
@given(rounds())
def test_at_temperature_zero_flame_is_fedavg_to_the_bit(round_):
    ours = Flame(temperature=0.0).combine(*round_)
    assert ours.digest() == FedAvg().combine(*round_).digest()


@each_strategy
@settings(max_examples=15)
@given(rounds(), st.integers(0, LAYERS - 1), st.integers(0, EXPERTS - 1))
def test_an_expert_nobody_trained_keeps_every_bit(strategy, round_, layer, expert):
    """The sign of a zero too."""
    adapter, updates = round_
    for update in updates:
        update.counts[layer, expert] = 0
        for entry, view in LAYOUT.views(update.delta.flat):
            if entry.layer == layer:
                view[expert] = 0
    mine = [e for e in LAYOUT.entries if e.layer == layer]
    adapter[mine[0].name][expert].view(-1)[0] = -0.0
    combined = strategy.combine(adapter, updates)
    for entry in mine:
        bits = [a[entry.name][expert].view(torch.int32) for a in (adapter, combined)]
        assert torch.equal(*bits), entry.name


@each_strategy
@settings(max_examples=15)
@given(rounds(), st.integers(2, 6))
def test_equal_updates_come_out_as_they_went_in(strategy, round_, times):
    """Within one rounding of float32, whatever the clients' sizes."""
    adapter, (first, *_) = round_
    sizes = [7 * first.examples + 2**24 * i for i in range(times)]
    updates = [replace(first, client=c, examples=n) for c, n in enumerate(sizes)]
    combined = strategy.combine(adapter, updates).flat
    torch.testing.assert_close(combined, (adapter + first.delta).flat, rtol=2e-7, atol=1e-9)


@each_strategy
@settings(max_examples=15)
@given(rounds(), st.randoms(use_true_random=False))
def test_the_order_of_the_updates_moves_no_more_than_a_rounding(strategy, round_, random):
    """The transports fix the order; the maths asks for none: sums run in float64."""
    adapter, updates = round_
    shuffled = random.sample(updates, len(updates))
    pair = [strategy.combine(adapter, us).flat for us in (updates, shuffled)]
    torch.testing.assert_close(*pair, rtol=1e-7, atol=1e-9)


@each_strategy
@settings(max_examples=15)
@given(rounds(), st.sampled_from([2, 1024, 2**20]))
def test_only_the_ratios_of_the_clients_sizes_matter(strategy, round_, factor):
    """Bit for bit for a power of two, and past the integers that float32 holds."""
    adapter, updates = round_
    larger = [replace(u, examples=u.examples * factor) for u in updates]
    pair = [strategy.combine(adapter, us).digest() for us in (updates, larger)]
    assert pair[0] == pair[1]


@given(
    st.floats(0, 1e15, allow_subnormal=False),
    st.floats(width=32, allow_infinity=False, allow_nan=False),
)
def test_a_weight_times_a_value_is_exact(weight, value):
    """Else a processor with fused multiply-add would give other bits than one without."""
    kept = streaming._checked(Weights(torch.full((1, 1), weight, dtype=torch.float64), weight), 0)[
        0
    ].item()
    assert abs(kept - weight) <= 2.0**-28 * weight
    if kept * value == 0 or abs(kept * value) > 1e-250:
        assert Fraction(kept) * Fraction(value) == Fraction(kept * value)


def test_shared_parts_are_divided_in_float64():
    """float32 has no 2**24 + 1: dividing by it there moved one update by an ulp and more."""
    delta = torch.randn(LAYOUT.size, generator=torch.Generator().manual_seed(0))
    counts = torch.ones(LAYERS, EXPERTS, dtype=torch.int64)
    update = update_of(0, 2**24 + 1, 3, counts, delta)
    zero = Adapter(LAYOUT, torch.zeros(LAYOUT.size))
    assert torch.equal(FedAvg().combine(zero, [update]).flat, delta)


def test_a_generator_of_updates_is_taken_a_few_at_a_time():
    """A few read together cross memory once with the sum; 200 clients hold no more of them."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, counts = 0, torch.ones(LAYERS, EXPERTS, dtype=torch.int64)

    def stream():
        nonlocal most
        for client in range(200):
            delta = torch.ones(LAYOUT.size)
            alive.add(delta)
            most = max(most, len(alive))
            yield update_of(client, 1, 3, counts, delta)
            del delta

    zero = Adapter(LAYOUT, torch.zeros(LAYOUT.size))
    assert Flame().combine(zero, stream()).flat.eq(1).all()
    assert most <= TOGETHER
    most = 0
    state = ServerState(0, zero, {"t": torch.ones(LAYERS)})
    assert finish_round(state, Flame(), stream()).adapter.flat.eq(1).all()
    assert most <= TOGETHER + 1  # the round loop also holds the first, which told it of any


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("block_values", [1, 3, 7, 20])
def test_neither_groups_nor_blocks_change_a_bit(monkeypatch, together, block_values):
    """Each number is summed in the order of the clients, wherever the work is cut."""
    generator = torch.Generator().manual_seed(1)
    updates = []
    for client in range(7):
        counts = torch.randint(0, 4, (LAYERS, EXPERTS), generator=generator)
        delta = torch.randn(LAYOUT.size, generator=generator)
        updates.append(update_of(client, 3 + client, 5, counts, delta))
    adapter = Adapter(LAYOUT, torch.randn(LAYOUT.size, generator=generator))
    whole = Flame().combine(adapter, updates)
    torch.testing.assert_close(whole.flat, slow_combine(Flame(), adapter, updates))
    monkeypatch.setattr(streaming, "TOGETHER", together)
    monkeypatch.setattr(
        streaming, "Blocks", SimpleNamespace(of=lambda x: Blocks.of(x, block_values))
    )
    assert Flame().combine(adapter, updates).digest() == whole.digest()


@pytest.mark.parametrize("block_values", [1, 3, 7, 8, 20, 2**16])
def test_blocks_are_rows_with_their_owners_weights(block_values):
    """The weights of all blocks spell out each number's expert, layer by layer, shared last."""
    owners = torch.arange(LAYERS * EXPERTS + 1.0, dtype=torch.float64) + 1
    blocks = Blocks.of(LAYOUT, block_values)
    spelled = torch.zeros(LAYOUT.size, dtype=torch.float64)
    for block, weights in zip(blocks.cut(spelled), blocks.weights(owners), strict=True):
        assert block.numel() <= block_values
        block.copy_(torch.as_tensor(weights).expand_as(block))
    for entry, view in LAYOUT.views(spelled):
        for row in range(EXPERTS) if entry.layer is not None else [0]:
            owner = owners[entry.layer * EXPERTS + row] if entry.layer is not None else owners[-1]
            assert (view if entry.layer is None else view[row]).eq(owner).all(), entry.name


def test_a_layer_that_a_client_never_used_is_not_read():
    """No value of its blocks is touched, where another client's count."""
    used = torch.ones(LAYERS, EXPERTS, dtype=torch.int64)
    unused = torch.tensor([[0, 0, 0], [1, 1, 1]])
    delta = torch.ones(LAYOUT.size)
    poisoned = delta.clone()
    for entry, view in LAYOUT.views(poisoned):
        if entry.layer == 0:
            view.fill_(math.nan)
    zero = Adapter(LAYOUT, torch.zeros(LAYOUT.size))
    updates = [update_of(0, 1, 3, unused, poisoned), update_of(1, 1, 3, used, delta)]
    assert Flame().combine(zero, updates).flat.eq(1).all()


@each_strategy
def test_no_updates_are_refused(strategy):
    with pytest.raises(AggregationError, match="no client updates"):
        strategy.combine(Adapter(LAYOUT, torch.zeros(LAYOUT.size)), iter(()))


@pytest.mark.parametrize(
    "weights",
    [
        Weights(torch.full((LAYERS, EXPERTS), -1.0), 1.0),
        Weights(torch.full((LAYERS, EXPERTS), math.nan), 1.0),
        Weights(torch.full((LAYERS, EXPERTS), math.inf), 1.0),
        Weights(torch.ones(LAYERS, EXPERTS), -1.0),
        Weights(torch.ones(LAYERS, EXPERTS), math.nan),
        Weights(torch.ones(LAYERS, EXPERTS), math.inf),
    ],
)
def test_weights_that_are_none_are_refused(weights):
    counts = torch.ones(LAYERS, EXPERTS, dtype=torch.int64)
    update = update_of(3, 1, 3, counts, torch.zeros(LAYOUT.size))
    with pytest.raises(AggregationError, match="client 3 has "):
        weighted_mean(update.delta, [update], lambda _: weights)


@pytest.mark.parametrize(
    ("settings_", "ratio"),
    [({}, 1 / 16), ({"frequency": "per_choice"}, 1), ({"temperature": 0}, 1)],
)
def test_at_t_2_a_k_of_1_counts_a_sixteenth_unless_choices_are_counted(settings_, ratio):
    """Clients of the same data that use all experts alike, at k = 4 and at k = 1."""
    strategy, shares = Flame(**settings_), TierShares()
    zeros, tokens = torch.zeros(LAYOUT.size), 12
    for tier, top_k in (("high", 4), ("low", 1)):
        counts = torch.full((LAYERS, EXPERTS), tokens * top_k // EXPERTS)
        counts[1, 2] = 0  # trained by nobody: in no share
        shares.add(strategy, update_of(0, 5, tokens, counts, zeros, tier=tier, top_k=top_k))
    found = shares.taken()
    assert sum(found.values()) == pytest.approx(1)
    assert found["low"] / found["high"] == pytest.approx(ratio)
    assert shares.taken() == {}
