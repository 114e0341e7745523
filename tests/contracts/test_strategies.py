"""Every registered strategy keeps the contract of `conformance`; it enters by being registered."""

from dataclasses import replace

import conformance as c
import pytest
import torch

from fedmoe.adapter import Adapter
from fedmoe.aggregation import MIXED_RANKS, STRATEGIES
from fedmoe.errors import AggregationError
from fedmoe.export.saved import read_adapter
from fedmoe.messages.codec import (
    most_bytes,
    pack_task,
    pack_update,
    task_num_bytes,
    unpack_task,
    unpack_update,
)
from fedmoe.messages.compression import Int8, NoCompression
from fedmoe.messages.compression.parts import carried
from fedmoe.rounds import ServerState, plan_round
from fedmoe.runs.recorder import adapter_bytes

NAMES = [kind().name for kind in STRATEGIES]
COMBINING = [k for k in STRATEGIES if k().name not in ("zero_round", "local_only")]
"""Those in which updates change the state."""
every = pytest.mark.parametrize("kind", COMBINING, ids=lambda k: k().name)


def test_names_are_unique_and_every_strategy_says_what_it_does_and_whose_it_is():
    assert len(set(NAMES)) == len(NAMES) == 23
    anchors = {"zero_round", "local_only", "centralized", "full_budget"}
    for kind in STRATEGIES:
        assert kind.__doc__
        source = "Source: " in kind.__doc__ or kind().name in anchors
        assert source, kind


@pytest.mark.parametrize("kind", [k for k in STRATEGIES if k.exact], ids=lambda k: k().name)
def test_where_exactness_is_claimed_the_mean_product_is_the_dense_one(kind):
    c.check_exact(c.made(kind))


def test_a_mean_of_factors_is_not_exact():
    """Or the test above could not fail."""
    averaging = next(k for k in STRATEGIES if k().name == "fedavg")
    with pytest.raises(AssertionError, match="not close"):
        c.check_exact(averaging())


@pytest.mark.parametrize(
    "kind", [k for k in COMBINING if not k.personal], ids=lambda k: k().name
)  # where clients keep a part there is no common product
def test_equal_updates_in_the_same_update_out(kind):
    c.check_equal_updates(c.made(kind))


@pytest.mark.parametrize(
    "kind", [k for k in COMBINING if k().name != "hetlora"], ids=lambda k: k().name
)  # its weights are norms, not sizes
def test_a_client_twice_as_large_counts_as_two(kind):
    c.check_size(c.made(kind))


@every
def test_every_client_counts(kind):
    c.check_every_client_counts(c.made(kind))


@every
def test_the_order_of_clients_is_irrelevant(kind):
    c.check_order(c.made(kind))


@every
def test_a_client_of_weight_zero_changes_nothing(kind):
    strategy = c.made(kind)

    def weightless(update):
        if strategy.name != "hetlora":
            return replace(update, examples=0)
        # Its weight is the norm of the client's product.
        state = c.second_state(strategy)
        return replace(update, delta=Adapter(c.PLAIN, -state.flat))

    c.check_weight_zero(strategy, weightless)


@every
def test_an_expert_that_nobody_used_keeps_every_bit(kind):
    c.check_untouched(c.made(kind))


@every
def test_training_follows_the_gradient_of_what_the_model_computes_with(kind):
    c.check_adjoint(c.made(kind))


@pytest.mark.parametrize(
    "kind", [k for k in COMBINING if k().name in MIXED_RANKS], ids=lambda k: k().name
)
def test_over_mixed_ranks_alpha_over_r_counts(kind):
    c.check_mixed_ranks(c.made(kind))


@pytest.mark.parametrize(
    ("kind", "rank"),
    [(k, c.RANK) for k in STRATEGIES] + [(k, 2) for k in STRATEGIES if k.mixed_ranks],
    ids=lambda x: str(x) if isinstance(x, int) else x().name,
)
def test_messages_hold_what_the_layouts_say_and_come_back_as_they_were(kind, rank):
    strategy = c.made(kind)
    state = strategy.first_state(c.INITIAL)
    used = ((0,), (0, 1))
    for round, upload in ((1, NoCompression()), (2, Int8())):
        task, local = c.start_of(strategy, state, round, rank=rank)
        layouts, message = local.layouts, pack_task(task)
        assert message.num_bytes == task_num_bytes(task)
        assert len(message.buffer) == 4 * (layouts.task.size + c.LAYERS)
        assert torch.equal(unpack_task(message, layouts.task).adapter.flat, task.adapter.flat)
        update = c.update_of(task, local, c.trained_by(local, 5, used), used)
        packed = pack_update(update, upload)
        parts = carried(layouts.update, update.counts.numpy())
        values = upload.num_bytes(parts) if layouts.update.size else 0
        assert len(packed.buffer) == 8 * c.LAYERS * c.EXPERTS + 4 * c.LAYERS + values
        down, up = most_bytes(layouts.task, layouts.update, upload)
        assert message.num_bytes <= down
        assert packed.num_bytes <= up
        arrived = unpack_update(packed, layouts.update, task, upload)
        if upload.name == "none":
            assert torch.equal(arrived.delta.flat, update.delta.flat)


@pytest.mark.parametrize("kind", STRATEGIES, ids=lambda k: k().name)
def test_a_state_that_was_saved_and_read_gives_the_same_next_round(kind, tmp_path):
    strategy = c.made(kind)
    state = strategy.first_state(c.INITIAL)
    if kind in COMBINING:
        state = c.second_state(strategy)
    (tmp_path / "state").write_bytes(adapter_bytes(state, ServerState(1, state, {})))
    again = read_adapter(tmp_path / "state", state.layout)[0]
    pair = [strategy.combine(s, c.clients(strategy, s, 7, 2)[0], 3) for s in (state, again)]
    assert pair[0].digest() == pair[1].digest()


@every
def test_without_updates_it_says_so(kind):
    strategy = c.made(kind)
    with pytest.raises(AggregationError, match="no client updates"):
        strategy.combine(strategy.first_state(c.INITIAL), iter(()), 3)


def test_without_clients_there_are_no_tasks():
    assert plan_round(ServerState(0, c.INITIAL, {}), (), 4, 0) == []
