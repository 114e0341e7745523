"""Whose update is against most others' takes no part in a round, however large or small it is."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import conformance as c
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.adapter import Adapter
from fedmoe.aggregation import FedAvg, Flame
from fedmoe.aggregation.robust import Clip, clip
from fedmoe.aggregation.robust.clip import opposed
from fedmoe.report.robust import robust_rule

LEAST = 0.02
DIRECTIONS = Clip(most_norm=None, most_size=None)
SOME = ((0,), (1, 2))
MIXED = (c.ALL, SOME, c.ALL, c.ALL, SOME)


@cache
def alike(strategy, used=MIXED, seed=3):
    """A state, and updates that have a common part."""
    state = c.second_state(strategy)
    number = len(used)
    updates, _ = c.clients(
        strategy, state, seed, used=used, examples=(2,) * number, ranks=(c.RANK,) * number
    )
    mean = torch.stack([u.delta.flat for u in updates]).mean(0)
    return state, [with_flat(u, u.delta.flat + 3 * mean) for u in updates]


def with_flat(update, flat):
    return replace(update, delta=Adapter(update.delta.layout, flat * (update.delta.flat != 0)))


def refused(told):
    return {v.client for v in told.judgement.clients if v.refused == v.trained}


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("strategy", [FedAvg(), Flame()])
def test_a_turned_update_of_any_size_is_as_if_it_were_not_there(strategy, size):
    state, updates = alike(strategy)
    for liar in range(len(updates)):
        sent = [*updates]
        sent[liar] = with_flat(updates[liar], -size * updates[liar].delta.flat)
        told = DIRECTIONS.combine(strategy, state, sent, len(sent))
        assert refused(told) == {liar}
        rest = strategy.combine(state, [u for u in sent if u.client != liar], len(sent))
        c.close(c.dense(told.state), c.dense(rest))


@pytest.mark.parametrize("turned", [(), (0,), (0, 1), (0, 1, 2), (1, 2, 3, 4)])
def test_the_smaller_side_is_left_out(turned):
    state, updates = alike(FedAvg())
    sent = [with_flat(u, -u.delta.flat) if u.client in turned else u for u in updates]
    few = {*turned} if len(turned) < 3 else {*range(5)} - {*turned}
    assert refused(DIRECTIONS.combine(FedAvg(), state, sent, 5)) == few


@pytest.mark.parametrize("number", [1, 2, 4])
def test_where_no_side_is_larger_nobody_is_left_out(number):
    state, updates = alike(FedAvg())
    sent = updates[:number]
    sent = [with_flat(u, -u.delta.flat) if n < number // 2 else u for n, u in enumerate(sent)]
    told = DIRECTIONS.combine(FedAvg(), state, sent, 5)
    assert told.state.digest() == FedAvg().combine(state, sent, 5).digest()


def test_in_a_round_of_very_many_nobody_votes(monkeypatch):
    state, updates = alike(FedAvg())
    sent = [*updates[:-1], with_flat(updates[-1], -updates[-1].delta.flat)]
    assert refused(DIRECTIONS.combine(FedAvg(), state, sent, 5))
    monkeypatch.setattr(clip, "MOST_VOTERS", 4)
    assert not refused(DIRECTIONS.combine(FedAvg(), state, sent, 5))


def test_updates_with_nothing_in_common_are_averaged_as_they_are():
    state, updates = alike(FedAvg(), (c.ALL,) * 4)
    sent = []
    for update in updates:  # each moves values that no other moves
        flat = torch.zeros_like(update.delta.flat)
        for n, (_, view) in enumerate(update.delta.layout.views(flat)):
            view.fill_(1.0 if n % 4 == update.client else 0.0)
        sent.append(replace(update, delta=Adapter(update.delta.layout, flat)))
    told = DIRECTIONS.combine(FedAvg(), state, sent, 4)
    assert refused(told) == set()
    assert Clip(most_against=None).combine(FedAvg(), state, sent, 4).state.digest() == (
        Clip().combine(FedAvg(), state, sent, 4).state.digest()
    )


def test_who_is_left_out_whole_is_on_the_page():
    state, updates = alike(FedAvg())
    sent = [*updates[:-1], with_flat(updates[-1], -updates[-1].delta.flat)]
    told = DIRECTIONS.combine(FedAvg(), state, sent, 5).judgement
    lines = [{"round": n, **told.as_json()} for n in (2, 3)]
    run = SimpleNamespace(judgements=lines, name_of="owner {}".format)
    assert robust_rule(run).note.endswith(" Clients left out, by round: owner 4 in 2, 3.")


@pytest.mark.parametrize("against", [1, 2, 3])
def test_more_than_half_of_the_others_put_one_out(against):
    found = torch.full((4, 4), 0.5)
    found[0, 1 : 1 + against] = found[1 : 1 + against, 0] = -0.5
    assert opposed(found, LEAST).tolist() == [against > 1, False, False, False]


@given(st.integers(3, 9), st.data())
def test_a_minority_can_put_out_nobody_who_agrees_with_the_rest(number, data):
    liars = data.draw(st.integers(0, (number - 1) // 2))
    cosine = st.floats(-1, 1)
    found = torch.eye(number, dtype=torch.float64)
    for i in range(number):
        for j in range(i):
            drawn = data.draw(cosine if j < liars else st.floats(2 * LEAST, 1))
            found[i, j] = found[j, i] = drawn
    assert not opposed(found, LEAST)[liars:].any()
    found[:liars, liars:] = found[liars:, :liars] = -2 * LEAST
    assert [*opposed(found, LEAST)[:liars]] == [True] * liars


def test_the_default_hears_a_vote_of_clients_that_have_little_in_common():
    # Measured: the second is turned, and two honest ones share 0.019.
    found = torch.tensor(
        [
            [1.0, -0.031, 0.070, 0.019],
            [-0.031, 1.0, -0.058, -0.120],
            [0.070, -0.058, 1.0, 0.075],
            [0.019, -0.120, 0.075, 1.0],
        ]
    )
    assert opposed(found, Clip().most_against).tolist() == [False, True, False, False]
