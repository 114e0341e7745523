"""Every registered strategy keeps the laws of `conformance`; it enters by being registered.

A strategy is held to the laws that it claims: traits are asked, never names.
"""

import conformance as c
import conformance_sent as sent
import pytest

from fedmoe.aggregation import STRATEGIES
from fedmoe.models.adapted import LoRA
from fedmoe.rounds import ServerState, plan_round


def those(claim=lambda kind: True):
    """Run a test for each strategy of which `claim` holds."""
    return pytest.mark.parametrize("kind", [*filter(claim, STRATEGIES)], ids=lambda k: k().name)


def test_names_are_unique():
    names = [kind().name for kind in STRATEGIES]
    assert len(set(names)) == len(names)


@those()
def test_every_strategy_says_what_it_does_and_whose_it_is(kind):
    assert kind.__doc__
    assert "Source: " in kind.__doc__


@those(lambda kind: kind.exact)
def test_where_exactness_is_claimed_the_mean_product_is_the_dense_one(kind):
    c.check_exact(c.made(kind))


@those(lambda kind: kind.linear)
def test_where_linearity_is_claimed_moves_add_up(kind):
    c.check_linear(c.made(kind))


@those(lambda kind: kind.maskable)
def test_where_sums_are_enough_nothing_else_counts(kind):
    c.check_maskable(c.made(kind))


@those(lambda kind: kind.size_weighted)
def test_where_clients_count_by_size_twice_the_size_is_two_clients(kind):
    c.check_size(c.made(kind))


@those(lambda kind: kind.mixed_ranks)
def test_over_mixed_ranks_alpha_over_r_counts(kind):
    sent.check_mixed_ranks(c.made(kind))


@those(lambda kind: kind.mixed_ranks)
def test_over_mixed_ranks_of_one_scale_that_scale_counts(kind, monkeypatch):
    monkeypatch.setattr(c, "LORA", LoRA(rank=c.RANK, alpha=8.0, scale="constant"))
    assert c.at_rank(2).scale == c.PLAIN.scale != c.PLAIN.with_rank(2).scale
    sent.check_mixed_ranks(c.made(kind))
    if kind.exact:
        c.check_exact(c.made(kind))


@those(lambda kind: kind.asynchronous)
def test_a_late_update_counts_no_more_than_an_early_one(kind):
    c.check_discount(c.made(kind))


@those(lambda kind: kind.continues)
def test_where_updates_continue_clients_send_the_same_tensors_in_every_round(kind):
    c.check_continues(c.made(kind))


@those(lambda kind: kind.personal)
def test_where_clients_keep_a_part_they_compute_with_it(kind):
    c.check_personal(c.made(kind))


@those(lambda kind: not kind.personal)
def test_of_a_common_model_equal_updates_are_the_next_state(kind):
    c.check_equal_updates(c.made(kind))


@those()
def test_routers_are_changed_where_that_is_said_and_nowhere_else(kind):
    c.check_routers(c.made(kind))


@those()
def test_gradients_are_changed_where_that_is_said_and_nowhere_else(kind):
    c.check_corrects(c.made(kind))


@those(c.narrows)
def test_where_some_experts_learn_alone_a_client_counts_for_those(kind):
    c.check_learners(c.made(kind))


@those()
def test_every_client_counts(kind):
    c.check_every_client_counts(c.made(kind))


@those()
def test_the_order_of_clients_is_irrelevant(kind):
    c.check_order(c.made(kind))


@those()
def test_an_expert_that_nobody_used_keeps_every_bit(kind):
    c.check_untouched(c.made(kind))


@those()
def test_training_follows_the_gradient_of_what_the_model_computes_with(kind):
    sent.check_adjoint(c.made(kind))


@those()
def test_messages_hold_what_the_layouts_say_and_come_back_as_they_were(kind):
    sent.check_messages(c.made(kind))


@those()
def test_a_state_that_was_saved_and_read_gives_the_same_next_round(kind, tmp_path):
    sent.check_saved(c.made(kind), tmp_path / "state")


@those()
def test_without_updates_it_says_so(kind):
    c.check_empty(c.made(kind))


def test_without_clients_there_are_no_tasks():
    assert plan_round(ServerState(0, c.INITIAL, {}), (), 4, 0) == []
