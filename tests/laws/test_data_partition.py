"""Partitions are disjoint, covering and repeatable, whatever the labels."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.data.examples import Example
from fedmoe.data.manifest import manifest, manifest_rows
from fedmoe.data.partition import (
    PARTITIONS,
    Dirichlet,
    Given,
    Iid,
    Natural,
    Quantity,
    Shards,
    partition,
)
from fedmoe.errors import DataError

MEMBERS = tuple(kind for kind in PARTITIONS.members if kind is not Given)


def labels_of(num_labels, num_each):
    return [f"label {i}" for i in range(num_labels) for _ in range(num_each)]


def skew(labels, parts):
    """Mean over clients of the share of their commonest label."""
    shares = [np.unique(np.array(labels)[p], return_counts=True)[1].max() / len(p) for p in parts]
    return np.mean(shares)


@st.composite
def rounds(draw):
    member = draw(st.sampled_from(MEMBERS))
    num_clients = draw(st.integers(1, 6))
    labels = draw(st.lists(st.sampled_from("abcd"), min_size=0, max_size=60))
    settings = {"num_clients": num_clients}
    if member in (Dirichlet, Quantity):
        settings["alpha"] = draw(st.sampled_from([1e-6, 0.1, 1.0, 1e6]))
    return member(**settings), labels, draw(st.integers(0, 3))


@given(rounds())
def test_parts_are_disjoint_covering_and_not_empty_or_refused(round_):
    config, labels, seed = round_
    try:
        parts = partition(config, labels, seed)
    except DataError:
        # Only too few examples for so many clients are refused; see the test of enough below.
        return
    assert len(parts) == config.num_clients
    assert all(len(part) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


@given(rounds())
def test_the_same_seed_gives_the_same_parts(round_):
    config, labels, seed = round_
    if len(labels) < 24:
        labels = labels_of(4, 6)
    first, second = partition(config, labels, seed), partition(config, labels, seed)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("member", MEMBERS)
def test_another_seed_gives_other_parts(member):
    labels, config = labels_of(3, 100), member(num_clients=5)
    first, second = partition(config, labels, 0), partition(config, labels, 1)
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@given(rounds())
def test_enough_examples_are_never_refused_by_chance(round_):
    config, _, seed = round_
    parts = partition(config, labels_of(4, 20), seed)
    assert len(parts) == config.num_clients


def test_natural_gives_each_client_one_label():
    labels = labels_of(4, 10)
    parts = partition(Natural(num_clients=4), labels, 0)
    assert [{labels[i] for i in part} for part in parts] == [{f"label {i}"} for i in range(4)]


def test_natural_shares_a_large_label_among_more_clients():
    labels = ["big"] * 90 + ["small"] * 10
    parts = partition(Natural(num_clients=4), labels, 0)
    assert sorted(len(part) for part in parts) == [10, 30, 30, 30]
    assert all(len({labels[i] for i in part}) == 1 for part in parts)


def test_natural_gives_a_client_several_labels_but_never_splits_one():
    labels = ["a"] * 50 + ["b"] * 30 + ["c"] * 20 + ["d"] * 10
    parts = partition(Natural(num_clients=2), labels, 0)
    owners = [{labels[i] for i in part} for part in parts]
    assert owners == [{"a"}, {"b", "c", "d"}] or owners == [{"a", "d"}, {"b", "c"}]


def test_a_small_alpha_skews_labels_and_a_large_one_does_not():
    labels = labels_of(5, 200)
    skews = [
        skew(labels, partition(Dirichlet(num_clients=8, alpha=alpha), labels, 0))
        for alpha in (0.05, 1.0, 100.0)
    ]
    assert skews[0] > skews[1] > skews[2]
    assert skews[2] == pytest.approx(0.2, abs=0.06)


def test_a_small_alpha_skews_sizes_but_not_labels():
    labels = labels_of(5, 400)
    small = partition(Quantity(num_clients=8, alpha=0.5), labels, 0)
    large = partition(Quantity(num_clients=8, alpha=1000.0), labels, 0)
    assert np.std([len(p) for p in small]) > 5 * np.std([len(p) for p in large])
    assert skew(labels, [p for p in small if len(p) > 100]) < 0.35


def test_iid_sizes_differ_by_at_most_one():
    sizes = [len(p) for p in partition(Iid(num_clients=7), labels_of(3, 10), 0)]
    assert max(sizes) - min(sizes) <= 1


def test_shards_bound_the_labels_of_a_client():
    labels = labels_of(10, 20)
    parts = partition(Shards(num_clients=10, shards_per_client=2), labels, 0)
    assert max(len({labels[i] for i in part}) for part in parts) <= 2


def test_shards_are_dealt_at_random():
    labels = labels_of(10, 20)
    parts = partition(Shards(num_clients=10, shards_per_client=2), labels, 0)
    assert max(len({labels[i] for i in part}) for part in parts) == 2


@pytest.mark.parametrize("member", MEMBERS)
def test_fewer_examples_than_clients_is_refused(member):
    with pytest.raises(DataError, match="client 3 would get no examples"):
        partition(member(num_clients=8), ["a", "b", "c"], 0)


def test_the_manifest_counts_what_each_client_holds():
    examples = [Example(f"prompt {i}", "x", label) for i, label in enumerate("aabbb")]
    held = manifest(examples, [np.array([0, 2]), np.array([1, 3, 4])])
    assert [client["labels"] for client in held["clients"]] == [{"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert [client["num_examples"] for client in held["clients"]] == [2, 3]
    assert json.loads(json.dumps(held)) == held
    columns, rows = manifest_rows(held)
    assert columns == ["client", "examples", "a", "b", "sha256"]
    assert rows[1][:4] == ["1", "3", "1", "2"]
    named = [Example("a", "x", ""), Example("b", "x", "b")]
    for found, labels in ((named, ["no label", "b"]), (named[:1], [])):
        columns, _ = manifest_rows(manifest(found, [np.arange(len(found))]))
        assert columns == ["client", "examples", *labels, "sha256"], "every column has a name"


def test_the_manifest_hash_ignores_order_and_sees_every_prompt():
    examples = [Example(f"prompt {i}", "x", "a") for i in range(3)]

    def digest(*rows):
        return manifest(examples, [np.array(rows)])["clients"][0]["sha256"]

    assert digest(0, 1) == digest(1, 0)
    assert digest(0, 1) != digest(0, 2)
