"""Masked sums: the sum of whoever is there, whoever leaves when, and nothing else."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from fedmoe.errors import AggregationError, FedMoEError, WireError
from fedmoe.privacy.masks.collector import Collector, both_of, left_alone, neighbours_of, pair_of
from fedmoe.privacy.masks.fixed_point import Part, decode, encode
from fedmoe.privacy.masks.identity import Owner
from fedmoe.privacy.masks.keys import KeyPair, add_mask, seal, unseal
from fedmoe.privacy.masks.party import Party, Refused, usable
from fedmoe.privacy.masks.settings import SecureAggregation, expected_clients
from fedmoe.privacy.masks.shares import join, split
from fedmoe.privacy.masks.steps import Parties
from fedmoe.privacy.masks.wire import Request

ABOUT = b"run|1"


def vectors(number, length=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2**64, (number, length), np.uint64)


def played(values, threshold, number=99, gone=(set(), set(), set(), set()), spoil=lambda _: None):
    """The round's sum if at step i the clients `gone[i]` leave."""
    clients = range(len(values))
    there = set(clients)
    order = np.random.default_rng(1).permutation(len(values)).tolist()
    neighbours = neighbours_of([*clients], number, order)
    collector = Collector(ABOUT, neighbours, threshold, values.shape[1])
    parties = {c: Party(ABOUT, c, threshold) for c in clients}
    there -= gone[0]
    collector.adverts = {c: parties[c].advertise() for c in there}
    there -= gone[1]
    collector.sealed = {c: parties[c].share(collector.adverts_for(c)) for c in sorted(there)}
    assert all(parties[c].open(collector.sealed_for(c)) == Refused() for c in sorted(there))
    there -= gone[2]
    for c in sorted(there):
        collector.add(c, parties[c].mask(values[c].copy()))
    arrived = set(there)
    there -= gone[3]
    collector.reveals = {c: parties[c].reveal(arrived) for c in there}
    spoil(collector)
    return collector.unmasked(), arrived


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_sum_of_those_who_are_there(data):
    """Clients leave at any of the four steps; two thirds of each one's neighbours stay."""
    number = data.draw(st.integers(4, 7))
    values = vectors(number, seed=data.draw(st.integers(0, 99)))
    leave = data.draw(
        st.lists(st.tuples(st.integers(0, number - 1), st.integers(0, 3)), max_size=1)
    )
    gone = [{c for c, step in leave if step == n} for n in range(4)]
    total, arrived = played(values, max(2, number // 2), gone=gone)
    assert total.tolist() == values[sorted(arrived)].sum(0, dtype=np.uint64).tolist()
    assert len(arrived) == number - sum(step < 3 for _, step in leave)


def test_neighbours_instead_of_everybody():
    values = vectors(12)
    total, arrived = played(values, 2, number=6, gone=({3}, {7}, {5}, {9}))
    assert total.tolist() == values[sorted(arrived)].sum(0, dtype=np.uint64).tolist()
    graph = neighbours_of([*range(12)], 4, [*range(12)])
    assert all(client in graph[other] for client, others in graph.items() for other in others)
    assert {len(others) for others in graph.values()} == {4}


def test_two_that_leave_at_unlike_steps():
    values = vectors(7)
    total, arrived = played(values, 3, gone=(set(), {0}, {6}, {2}))
    assert arrived == {1, 2, 3, 4, 5}
    assert total.tolist() == values[[1, 2, 3, 4, 5]].sum(0, dtype=np.uint64).tolist()


def test_what_the_server_holds_of_one_client_is_uniform():
    """A masked vector of zeros looks like any other: its bytes are evenly spread."""
    party, others = Party(ABOUT, 0, 1), [Party(ABOUT, 1, 1)]
    adverts = {0: party.advertise(), 1: others[0].advertise()}
    sealed = others[0].share({0: adverts[0]})
    party.share({1: adverts[1]})
    party.open({1: sealed[0]})
    masked = party.mask(np.zeros(20_000, np.uint64))
    counts = np.bincount(masked.view(np.uint8), minlength=256)
    assert chisquare(counts).pvalue > 1e-4


def test_too_few_reveal_nothing():
    with pytest.raises(AggregationError, match=r"2 of 3 shares"):
        played(vectors(5), 3, gone=(set(), set(), set(), {0, 1}))
    with pytest.raises(WireError, match="too few"):
        played(vectors(5), 3, gone=(set(), set(), {0, 1, 2}, set()))


def test_a_party_never_gives_both_secrets_or_masks_twice():
    parties = [Party(ABOUT, c, 1) for c in range(3)]
    adverts = {p.client: p.advertise() for p in parties}
    sealed = {
        p.client: p.share({c: a for c, a in adverts.items() if c != p.client}) for p in parties
    }
    for_first = {c: sealed[c][0] for c in (1, 2)}
    with pytest.raises(WireError, match="0 neighbours"):
        parties[0].mask(np.zeros(3, np.uint64))
    assert parties[0].open(for_first) == Refused()
    with pytest.raises(WireError, match="not opened again"):
        parties[0].open(for_first)
    parties[0].mask(np.zeros(3, np.uint64))
    with pytest.raises(WireError, match="second vector"):
        parties[0].mask(np.zeros(3, np.uint64))
    revealed = parties[0].reveal([0, 1])
    assert revealed.seeds.keys() == {1}
    assert revealed.keys.keys() == {2}
    with pytest.raises(WireError, match="too few"):
        parties[0].reveal([0, 2])


def test_a_server_that_invents_neighbours_is_refused():
    owners = owners_of("a", "b", "c")
    of = {client: Party(ABOUT, client, 2, owners[name]) for client, name in enumerate("abc")}
    real = {client: of[client].advertise() for client in (1, 2)}
    invented = Party(ABOUT, 2).advertise()
    for forged, said in (
        (invented, None),
        (replace(invented, signature=real[2].signature, signer="c"), None),
        (replace(real[2], signer="b"), None),
        (replace(real[2], signer="z"), None),
        (Party(b"run|2", 2, 2, owners["c"]).advertise(), None),  # of another round
        (Party(ABOUT, 2, 2, owners["b"]).advertise(), "1 other owners"),
        (Party(ABOUT, 2, 2, owners["a"]).advertise(), "1 other owners"),
    ):
        party = Party(ABOUT, 0, 2, owners["a"])
        if said is None:
            assert party.share({1: real[1], 2: forged}) == Refused((2,))
            continue
        with pytest.raises(WireError, match=said):
            party.share({1: real[1], 2: forged})
    with pytest.raises(WireError, match="1 neighbours"):
        of[0].share({1: real[1]})
    of[0].share(real)
    with pytest.raises(WireError, match="not shared again"):
        of[0].share(real)


def test_a_client_wants_as_many_neighbours_as_its_experiment_says():
    """A server that shows it two of nineteen would learn a sum of three."""
    settings = SecureAggregation(threshold=0.6)
    adverts = {client: Party(ABOUT, client).advertise() for client in range(1, 20)}

    def share(expected, number, threshold=None):
        parties = Parties(settings, expected)
        parties.answer(0, Request("advertise", "run|1"))
        few = dict(list(adverts.items())[:number])
        threshold = threshold or settings.threshold_of(number)
        return parties.answer(0, Request("share", "run|1", adverts=few, threshold=threshold))

    for expected, number in ((20, 12), (None, 2), (2, 2)):
        assert len(share(expected, number)) == number
    for expected, number in ((20, 11), (20, 2), (None, 1)):
        with pytest.raises(WireError, match=f"{number} neighbours"):
            share(expected, number)
    assert len(share(20, 12, threshold=12)) == 12
    with pytest.raises(WireError, match="7 of 12 neighbours shall open"):
        share(20, 12, threshold=7)
    with pytest.raises(WireError, match="12 neighbours; expected 13"):
        share(20, 12, threshold=13)


def test_how_many_clients_a_round_has_by_the_experiment():
    def expected(number=20, part=None, rounds=10, clients=None, given=(), **privacy):
        data = SimpleNamespace(name="federated" if clients else "files", clients=clients)
        partition = SimpleNamespace(num_clients=number, clients=given)
        privacy = SimpleNamespace(**privacy) if privacy else None
        names = {"clients_per_round": part, "rounds": rounds, "privacy": privacy}
        return expected_clients(SimpleNamespace(data=data, partition=partition, **names))

    assert expected() == expected(part=30) == 20
    assert expected(part=5) == expected(part=5, sampling="known") == 5
    assert expected(clients=("a",) * 7) == 7
    assert expected(number=None) is None
    assert expected(number=None, given=("a", "b", "c")) == 3
    assert expected(number=None, part=4, sampling="secret") == 4
    assert expected(sampling="secret") == 20
    for number, part, rounds in ((20, 5, 10), (200, 40, 20), (1000, 100, 100)):
        fewest = expected(number, part, rounds, sampling="secret")
        chances = binom.cdf([fewest - 1, fewest], number, part / number) * rounds
        assert chances[0] <= 1e-3 < chances[1]


def owners_of(*names):
    keys = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    known = {name: key.public_key() for name, key in keys.items()}
    return {name: Owner(name, key, known) for name, key in keys.items()}


def test_a_changed_share_is_left_out_and_its_helper_named():
    """One who reveals a wrong share, of a mask or of a key of somebody gone, cannot spoil a sum."""
    values, seen = vectors(7), []

    def spoilt(kind, number, collector):
        for helper, reveal in list(collector.reveals.items())[:number]:
            shares = getattr(reveal, kind)
            shares |= {client: bytes(len(share)) for client, share in shares.items()}
            seen.append((collector, helper))

    for kind, what in (("seeds", "mask"), ("keys", "key")):
        gone = (set(), set(), {6}, set())
        for number in (1, 2) if kind == "keys" else (1,):
            seen.clear()
            total, _ = played(values, 4, gone=gone, spoil=partial(spoilt, kind, number))
            assert total.tolist() == values[:6].sum(0, dtype=np.uint64).tolist()
            assert seen[0][0].wrong.keys() == {helper for _, helper in seen}
        with pytest.raises(AggregationError, match=f"no 4 of the . shares .* {what} give it back"):
            played(values, 4, gone=gone, spoil=partial(spoilt, kind, 3))


def test_a_key_that_nobody_can_have_is_noticed_at_once():
    good = Party(ABOUT, 0).advertise()
    assert usable(good)
    for bad in (replace(good, sealing=bytes(32)), replace(good, masking=bytes(32))):
        assert not usable(bad)
        party, other = Party(ABOUT, 1), Party(ABOUT, 2).advertise()
        party.advertise()
        assert party.share({0: bad, 2: other}) == Refused((0,))


def test_junk_in_place_of_a_share_is_named_before_anybody_trains():
    parties = [Party(ABOUT, c, 1) for c in range(3)]
    adverts = {p.client: p.advertise() for p in parties}
    sealed = {
        p.client: p.share({c: a for c, a in adverts.items() if c != p.client}) for p in parties
    }
    assert parties[0].open({1: bytes(76), 2: sealed[2][0]}) == Refused((1,))


def test_disputes_cost_whoever_is_in_most_of_them():
    most = SecureAggregation().threshold_of
    clients = [*range(8)]
    assert left_alone(clients, [], most) == {}
    assert left_alone(clients, [pair_of(0, 1), pair_of(0, 2)], most) == {}
    assert left_alone(clients, [pair_of(0, c) for c in range(1, 8)], most) == {0: [*range(1, 8)]}
    # Two who refuse everybody leave, and nobody else.
    everybody = [pair_of(c, other) for c in (0, 1) for other in range(2, 8)]
    assert [*left_alone(clients, everybody, most)] == [0, 1]
    # Whoever they are, liars who go on and on cost no more honest clients than there are of them.
    for liars in ({0}, {0, 1}, {3, 7}):
        new = [pair_of(c, other) for c in liars for other in clients if other not in liars]
        gone = {*both_of(new)}
        assert len(gone - liars) <= len(gone & liars)
        assert all(gone & pair for pair in new)


def test_shares_cannot_be_changed_or_swapped():
    mine, theirs = KeyPair(), KeyPair()
    key = mine.agree(theirs.public, b"a")
    assert theirs.agree(mine.public, b"a") == key != mine.agree(theirs.public, b"b")
    sealed = seal(key, b"share", b"0|1")
    assert unseal(key, sealed, b"0|1") == b"share"
    for text, about in (
        (sealed[:-1] + bytes([sealed[-1] ^ 1]), b"0|1"),
        (sealed, b"1|0"),
        (b"", b""),
    ):
        with pytest.raises(WireError, match="changed"):
            unseal(key, text, about)
    with pytest.raises(WireError, match="public key"):
        mine.agree(bytes(32), b"a")  # a point of small order
    with pytest.raises(WireError, match="public key"):
        mine.agree(b"short", b"a")


def test_any_threshold_of_shares_is_enough_and_one_less_is_not():
    secret = bytes(range(48))
    shares = dict(enumerate(split(secret, 3, 5)))
    for chosen in ((0, 1, 2), (4, 2, 1), (0, 3, 4)):
        assert join({c: shares[c] for c in chosen}, 3) == secret
    with pytest.raises(AggregationError):
        join({0: shares[0], 1: shares[1]}, 3)


def test_masks_are_the_same_in_pieces():
    long, short = np.zeros(2**17 + 9, np.uint64), np.zeros(7, np.uint64)
    add_mask(long, bytes(32), 1)
    add_mask(short, bytes(32), 1)
    assert long[:7].tolist() == short.tolist()
    assert len(np.unique(long)) == len(long)
    add_mask(long, bytes(32), -1)
    assert not long.any()


def test_fixed_point_is_exact_in_sums_and_states_its_range():
    parts = [Part("changes", 3, bound=1e6, num_clients=1000), Part("losses", 1, 16.0, 1000)]
    rng = np.random.default_rng(0)
    rows = [rng.uniform(-1e6, 1e6, 3) for _ in range(1000)]
    total = sum(encode(parts, [row, np.array([16.0])]) for row in rows)
    found = decode(parts, total)
    np.testing.assert_allclose(found["changes"], np.sum(rows, 0), atol=1000 / parts[0].scale)
    assert found["losses"].tolist() == [16000.0]
    assert parts[0].scale >= 2**30
    with pytest.raises(FedMoEError, match="changes"):
        encode(parts, [np.array([0, 0, 1.01e6]), np.zeros(1)])
    with pytest.raises(FedMoEError, match="losses"):
        encode(parts, [np.zeros(3), np.array([np.nan])])
