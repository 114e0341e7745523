"""Laws of the tier assignment: every client gets one tier, by number or by share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedmoe.budget import Levels, Tier
from fedmoe.errors import ConfigError

NAMES = "abcd"


@given(
    st.integers(1, 60), st.lists(st.integers(0, 10), min_size=1, max_size=4), st.integers(0, 2**40)
)
def test_shares_are_met_to_within_one_client(num_clients, parts, seed):
    parts[0] += 1
    tiers = {n: Tier(top_k=1, share=p / sum(parts)) for n, p in zip(NAMES, parts, strict=False)}
    assigned = Levels(tiers=tiers).assign(num_clients, 4, seed)
    assert len(assigned) == num_clients
    for name, part in zip(NAMES, parts, strict=False):
        assert abs(assigned.count(name) - num_clients * part / sum(parts)) < 1


@given(st.integers(1, 60), st.integers(1, 4))
def test_tiers_without_shares_are_equal(num_clients, num_tiers):
    levels = Levels(tiers={name: Tier(top_k=1) for name in NAMES[:num_tiers]})
    sizes = [levels.assign(num_clients, 4, 0).count(name) for name in NAMES[:num_tiers]]
    assert sum(sizes) == num_clients
    assert max(sizes) - min(sizes) <= 1


def test_the_seed_alone_decides_who_gets_which_share():
    levels = Levels(tiers={"a": Tier(top_k=1, share=0.5), "b": Tier(top_k=2, share=0.5)})
    draws = [levels.assign(12, 4, seed) for seed in range(10)]
    assert draws == [levels.assign(12, 4, seed) for seed in range(10)]
    assert len(set(draws)) > 5


def test_clients_listed_by_number_are_placed_and_shares_divide_the_rest():
    tiers = {
        "a": Tier(top_k=1, clients=(0, 5)),
        "b": Tier(top_k=2, share=0.25),
        "c": Tier(top_k=4, share=0.75),
    }
    assigned = Levels(tiers=tiers).assign(10, 4, 0)
    assert [c for c, tier in enumerate(assigned) if tier == "a"] == [0, 5]
    assert (assigned.count("b"), assigned.count("c")) == (2, 6)


def test_all_clients_can_be_listed():
    tiers = {"a": Tier(top_k=1, clients=(2, 0)), "b": Tier(top_k=2, clients=(1,))}
    assert Levels(tiers=tiers).assign(3, 4, 0) == ("a", "b", "a")


def test_without_tiers_every_client_has_the_full_budget():
    assert Levels().assign(3, 4, 0) == ("full",) * 3
    assert Levels().resolved(4)["full"].top_k == 4


def test_every_fault_is_reported_at_once_with_its_place():
    tiers = {"a": Tier(top_k=5, clients=(0, 9)), "b": Tier(top_k=2, clients=(0,))}
    with pytest.raises(ConfigError) as caught:
        Levels(tiers=tiers).assign(3, 4, 0)
    assert [(f.path, f.message) for f in caught.value.faults] == [
        ("budget.tiers.a.top_k", "5 is over the model's top_k of 4"),
        ("budget.tiers.a.clients", "there is no client 9; clients are 0..2"),
        ("budget.tiers.b.clients", "client 0 is also in 'a'"),
        ("budget.tiers", "client 1 is in no tier; list it, or give a tier a share"),
    ]


@pytest.mark.parametrize("shares", [(0.5, 0.4), (1.0, 0.5), (0.0, 0.0)])
def test_shares_that_do_not_sum_to_one_are_refused(shares):
    with pytest.raises(ValidationError, match="shares sum to"):
        Levels(tiers={n: Tier(top_k=1, share=s) for n, s in zip(NAMES, shares, strict=False)})


@pytest.mark.parametrize(
    "fields", [{"top_k": 0}, {"top_k": 1, "share": 1.5}, {"top_k": 1, "clients": (-1,)}]
)
def test_impossible_tiers_are_refused(fields):
    with pytest.raises(ValidationError):
        Tier(**fields)
