"""Robust rules against slow loops."""

from statistics import median

import conformance as c
import pytest
import torch

from fedmoe.aggregation.robust.median import Median

USED = [
    (c.ALL, c.ALL, c.ALL),
    (c.ALL, ((0,), (1, 2)), ((1,), (0, 1)), ((0, 1), (1,))),
    (((0,), (1,)), ((0,), (1,))),
    (((2,), (2,)),),
]


def slow_median(state, updates):
    """One number at a time, over the clients that used its expert; over all for shared parts."""
    made = state.copy()
    for entry, view in made.layout.views(made.flat):
        numbers = view.view(-1)
        for i in range(len(numbers)):
            expert = i // (len(numbers) // c.EXPERTS) if entry.layer is not None else None
            voters = [u for u in updates if expert is None or u.counts[entry.layer, expert]]
            if voters:
                numbers[i] += median(float(u.delta.views()[entry.name].view(-1)[i]) for u in voters)
    return made


@pytest.mark.parametrize("used", USED)
def test_the_median_is_that_of_each_experts_users(used):
    state = c.second_state(Median())
    number = len(used)
    updates, _ = c.clients(
        Median(), state, 5, used=used, examples=(1,) * number, ranks=(c.RANK,) * number
    )
    found, wanted = Median().combine(state, updates, 9), slow_median(state, updates)
    torch.testing.assert_close(found.flat, wanted.flat, rtol=0, atol=1e-6)


def test_a_client_has_one_vote_whatever_its_size_and_order_changes_no_bit():
    state = c.second_state(Median())
    small, large = (
        c.clients(Median(), state, 5, examples=sizes)[0] for sizes in ((1, 1, 1), (1, 99, 5))
    )
    digests = {Median().combine(state, us, 3).digest() for us in (small, large, small[::-1])}
    assert len(digests) == 1
