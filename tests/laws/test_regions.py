"""Sums of regional servers, added above them, make the flat federation's state within rounding."""

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.aggregation import STRATEGIES, FedAvg, Flame
from fedmoe.errors import AggregationError
from fedmoe.messages.records import Update

REGIONS, OWNERS = 10, 1000
UNITS = 1
"""Steps of float32 that a value may differ by: both ways round a float64 sum once."""


def updates_of(owners, seed=0):
    """Random updates; most owners reach few experts, and nobody the last one of layer 0."""
    generator = torch.Generator().manual_seed(seed)
    for client in range(owners):
        counts = torch.randint(0, 60, (c.LAYERS, c.EXPERTS), generator=generator)
        counts *= torch.rand(counts.shape, generator=generator) < 0.4
        counts[0, -1] = 0
        noise = torch.randn(c.PLAIN.size, generator=generator)
        yield Update(
            round=1,
            client=client,
            tier="t",
            top_k=1,
            rescaler=torch.ones(c.LAYERS),
            delta=keep_untouched(Adapter(c.PLAIN, noise), counts),
            counts=counts,
            examples=1 + client % 40,
            tokens=60,
            steps=1,
            loss_before=1.0,
            loss_after=1.0,
            seconds=1.0,
            peak_bytes=1,
        )


def by_regions(strategy, state, regions):
    """The next state, made of the sums of regions."""
    total = strategy.sums(state, [])
    for region in regions:
        total.add(strategy.sums(state, region))
    return strategy.combine_sums(state, total)


@pytest.mark.parametrize("strategy", [FedAvg(), Flame(), Flame(temperature=0.5)])
def test_ten_regions_of_a_hundred_owners_are_a_thousand_owners(strategy):
    state, updates = c.INITIAL, [*updates_of(OWNERS)]
    flat = strategy.combine(state, updates)
    each = OWNERS // REGIONS
    regions = [updates[first : first + each] for first in range(0, OWNERS, each)]
    found = by_regions(strategy, state, regions)
    one = torch.nextafter(flat.flat.abs(), torch.tensor(torch.inf)) - flat.flat.abs()
    assert ((found.flat - flat.flat).abs() <= UNITS * one).all()
    assert not torch.equal(flat.flat, state.flat)
    # Regions of unlike sizes, one of nobody: as well.
    again = by_regions(strategy, state, [updates[:1], [], updates[1:700], updates[700:]])
    assert ((again.flat - flat.flat).abs() <= UNITS * one).all()


def test_one_region_is_the_flat_federation_bit_for_bit():
    updates = [*updates_of(30)]
    flat = Flame().combine(c.INITIAL, updates)
    assert by_regions(Flame(), c.INITIAL, [updates]).digest() == flat.digest()


def test_an_expert_that_no_region_used_stays_bitwise_identical():
    updates = [*updates_of(60)]
    found = by_regions(Flame(), c.INITIAL, [updates[:30], updates[30:]])
    moved = (found - c.INITIAL).views()
    for entry in c.PLAIN.entries:
        if entry.layer == 0:
            assert moved[entry.name][-1].eq(0).all()
            assert moved[entry.name][:-1].ne(0).any()


@pytest.mark.parametrize(
    "kind", [kind for kind in STRATEGIES if kind.maskable], ids=lambda kind: kind().name
)
@pytest.mark.parametrize("round", [1, 2])
def test_where_sums_are_enough_regions_can_form_them(kind, round):
    strategy = c.made(kind)
    state = c.second_state(strategy, round=round - 1)
    updates, _ = c.clients(strategy, state, 9, round, (c.ALL, ((0,), (1, 2)), ((1,), (1, 2))))
    flat = strategy.combine(state, updates, 3)
    found = by_regions(strategy, state, [updates[:2], [], updates[2:]])
    torch.testing.assert_close(found.flat, flat.flat, rtol=1e-6, atol=1e-9)


def test_regions_that_were_sent_unlike_tasks_are_refused():
    updates = [*updates_of(2)]
    other = Adapter(c.PLAIN.only("B"), torch.ones(c.PLAIN.only("B").size))
    total = FedAvg().sums(c.INITIAL, updates[:1])
    sums = FedAvg().sums(other, [])
    sums.num_updates = 1
    with pytest.raises(AggregationError, match="cannot be added; all regions"):
        total.add(sums)


def test_regions_without_updates_make_no_state():
    with pytest.raises(AggregationError, match="no client updates"):
        by_regions(FedAvg(), c.INITIAL, [[], []])
