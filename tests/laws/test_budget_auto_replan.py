"""Laws of planning again: down at once, up after patience, never back to where memory ran out."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedmoe.budget.replan import Observed, Standing, replan, within_memory

ROUNDS = st.lists(st.builds(Observed, st.integers(0, 8), st.none() | st.integers(1, 8)))


def after(now, *fits, patience=2):
    for fit in fits:
        now = replan(now, Observed(fit), patience)
    return now


def test_less_is_followed_at_once_and_more_after_a_while_one_by_one():
    start = Standing(4, 8)
    assert after(start, 2).top_k == 2
    assert after(start, 6).top_k == 4
    assert after(start, 6, 6).top_k == 5
    assert after(start, 6, 6, 6).top_k == 5
    assert after(start, 6, 6, 6, 6, 6, 6).top_k == 6
    assert after(start, 0).top_k == 0


def test_memory_that_goes_up_and_down_changes_nothing():
    assert after(Standing(4, 8), *[6, 4] * 20) == Standing(4, 8)


def test_running_out_of_memory_lowers_k_for_good():
    now = replan(Standing(4, 8), Observed(8, ran_out_at=4))
    assert (now.top_k, now.ceiling) == (3, 3)
    assert after(now, *[8] * 10).top_k == 3
    assert replan(Standing(1, 8), Observed(8, ran_out_at=1)).top_k == 0


@given(st.integers(0, 8), ROUNDS, st.integers(1, 4))
def test_k_never_passes_the_ceiling_the_plan_or_one_step_up(k, rounds, patience):
    now = Standing(k, 8)
    for observed in rounds:
        then = replan(now, observed, patience)
        assert 0 <= then.top_k <= then.ceiling <= now.ceiling
        assert then.top_k <= max(observed.fits, 0)
        assert then.top_k <= now.top_k + 1
        now = then


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_client_that_runs_out_of_memory_lives_with_less(error, caplog):
    tried = []

    def attempt(k):
        tried.append(k)
        if k > 2:
            raise error
        return "trained"

    with caplog.at_level(logging.WARNING):
        assert within_memory(attempt, 4, "client 3") == ("trained", 2)
    assert tried == [4, 3, 2]
    assert caplog.messages[0] == "client 3 ran out of memory with k = 4; trying k = 3"


def test_other_errors_and_the_last_one_are_raised():
    def fails(k):
        raise RuntimeError("a shape")

    def never_fits(k):
        raise MemoryError

    with pytest.raises(RuntimeError, match="a shape"):
        within_memory(fails, 4)
    with pytest.raises(MemoryError):
        within_memory(never_fits, 2)


def test_torch_says_so_when_main_memory_is_short():
    """The words that `ran_out_of_memory` looks for, from torch itself."""
    sizes = []

    def attempt(k):
        sizes.append(k)
        return torch.empty(2**46 if k > 1 else 1).numel()

    assert within_memory(attempt, 2) == (1, 1)
    assert sizes == [2, 1]
