"""Laws of one local round: repeatable, honest about what it touched, loss on responses alone."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from fedmoe.adapter import Adapter, keep_untouched
from fedmoe.data.text import Tokens, collate, evaluation_batches, training_batches
from fedmoe.errors import DataError
from fedmoe.messages.codec import pack_update, unpack_update
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.models.rescaling import LearnedRescaling
from fedmoe.training.client import _accumulate, train_client
from fedmoe.training.loss import mean_loss, response_loss, row_losses
from fedmoe.training.settings import Training

PAD = 0


def rows_of(*lengths, seed=0):
    """Examples of random ids; of n tokens the first third is the prompt."""
    rng = np.random.default_rng(seed)
    return [Tokens(tuple(rng.integers(2, 64, n).tolist()), max(1, n // 3)) for n in lengths]


ROWS = rows_of(4, 9, 6, 12, 5, 7)


def task_for(model, adapter, **changes):
    fields = {
        "round": 1,
        "client": 0,
        "tier": "t",
        "top_k": 2,
        "adapter": adapter,
        "rescaler": torch.ones(model.layout.num_layers),
    }
    return Task(**(fields | changes))


def trained(model, adapter, rows=ROWS, *, seed=0, task=None, **settings_):
    fields: dict[str, Any] = {"steps": 2, "batch_size": 3} | settings_
    task = task or task_for(model, adapter)
    return train_client(model, rows, PAD, task, Training(**fields), num_rounds=2, seed=seed)


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model(adapter=LoRA(rank=2))


@pytest.fixture(scope="module")
def adapter(model, random_adapter):
    return random_adapter(model.layout)


def test_the_same_task_gives_the_same_bits_whatever_was_trained_between(model, adapter):
    first = trained(model, adapter)
    other = trained(model, adapter, task=task_for(model, adapter, client=1, top_k=4))
    again = trained(model, adapter)
    assert first.delta.digest() == again.delta.digest() != other.delta.digest()
    assert torch.equal(first.counts, again.counts)
    assert (first.loss_before, first.loss_after) == (again.loss_before, again.loss_after)
    assert trained(model, adapter, seed=1).delta.digest() != first.delta.digest()


def test_recomputed_activations_change_no_bit(model, adapter):
    kept, again = trained(model, adapter), trained(model, adapter, recompute=True)
    assert all(state.recompute for state in model.states)
    assert again.delta.digest() == kept.delta.digest()
    assert again.loss_after == kept.loss_after


def test_training_leaves_the_task_alone_lowers_the_loss_and_passes_the_door(model, adapter):
    before = adapter.digest()
    task = task_for(model, adapter)
    update = trained(model, adapter, task=task, steps=8, learning_rate=1e-2)
    unpack_update(pack_update(update), update.delta.layout, task)
    assert adapter.digest() == before
    assert task.rescaler.eq(1).all()
    assert update.loss_after < update.loss_before
    model.load(adapter)
    model.set_budget(task.top_k)
    assert update.loss_before == mean_loss(model, ROWS, 3, PAD)
    assert model.grad.eq(0).all()


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_an_expert_that_no_token_reached_has_a_delta_of_zero(model, adapter, decay):
    """Weight decay moves every weight, so here it is what has to be undone."""
    task = task_for(model, adapter, top_k=1)
    update = trained(model, adapter, rows_of(4, 5), task=task, weight_decay=decay, steps=1)
    untouched = update.counts == 0
    assert untouched.any()
    for entry, view in model.layout.views(update.delta.flat):
        if entry.layer is not None:
            assert view[untouched[entry.layer]].eq(0).all(), entry.name
            assert view[~untouched[entry.layer]].ne(0).any(), entry.name
        else:
            assert view.ne(0).any(), entry.name


def test_keep_untouched_changes_nothing_else(model, adapter):
    counts = torch.ones(2, 8, dtype=torch.int64)
    counts[1, 3] = 0
    kept = keep_untouched(adapter, counts)
    for entry, view in model.layout.views(kept.flat):
        expected = adapter[entry.name].clone()
        if entry.layer == 1:
            expected[3] = 0
        assert torch.equal(view, expected), entry.name


def test_two_micro_batches_accumulate_to_the_gradient_of_one_batch(model, adapter):
    """Relative error 1e-6: the mean is over all response tokens, not over batch means."""
    model.load(adapter)
    model.set_budget(2)
    grads = []
    for batches in ([ROWS], [ROWS[:2], ROWS[2:]]):
        model.grad.zero_()
        tokens = _accumulate(model, [collate(part, PAD) for part in batches])
        grads.append(model.grad.clone())
        assert tokens == sum(len(row.ids) - 1 for row in ROWS)
    model.grad.zero_()
    one, two = grads
    assert (one - two).norm() <= 1e-6 * one.norm()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
def test_collate_matches_a_slow_loop(shapes):
    rows = [Tokens(tuple(range(2, 2 + p + r)), p) for p, r in shapes]
    batch = collate(rows, pad=63)
    width, positions, targets = batch.input_ids.shape[1], [], []
    assert width == max(len(row.ids) for row in rows) - 1
    for i, row in enumerate(rows):
        for t in range(width):
            real = t < len(row.ids) - 1
            assert batch.input_ids[i, t] == (row.ids[t] if real else 63)
            assert batch.valid[i, t] == real
            if real and t + 1 >= row.prompt_length:
                positions.append(i * width + t)
                targets.append(row.ids[t + 1])
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets


def test_the_loss_is_the_cross_entropy_of_response_tokens_row_by_row(model, adapter):
    """Against each row alone, unpadded, through all logits; relative error 1e-5."""
    model.load(adapter)
    model.set_budget(3)
    slow = 0.0
    for row in ROWS:
        ids = torch.tensor([row.ids])
        logits = model.logits(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))[0]
        for t in range(row.prompt_length, len(row.ids)):
            slow += F.cross_entropy(logits[t - 1], ids[0, t]).item()
    assert response_loss(model, collate(ROWS, PAD)).item() == pytest.approx(slow, rel=1e-5)
    total = sum(len(row.ids) - row.prompt_length for row in ROWS)
    assert mean_loss(model, ROWS, 4, PAD) == pytest.approx(slow / total, rel=1e-5)


def numbers_in(batches):
    return sorted(int(t) for batch in batches for t in batch.targets if t >= 100)


@settings(max_examples=30)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_an_epoch_of_batches_holds_every_row_once(count, batch_size, seed):
    rows = [Tokens((2, 100 + i, *[4] * (i % 5)), 1) for i in range(count)]
    number = -(-count // batch_size)
    stream = training_batches(rows, batch_size, PAD, np.random.default_rng(seed))
    for _ in range(2):
        epoch = [next(stream) for _ in range(number)]
        assert numbers_in(epoch) == list(range(100, 100 + count))
        assert max(len(b.input_ids) for b in epoch) <= batch_size
    assert numbers_in(evaluation_batches(rows, batch_size, PAD)) == list(range(100, 100 + count))


def test_the_learned_rescaler_is_trained_and_returned(tiny_model, random_adapter):
    model = tiny_model(rescaling=LearnedRescaling(), adapter=LoRA(rank=2))
    adapter = random_adapter(model.layout)
    start = torch.tensor([1.5, 0.5])
    task = task_for(model, adapter, rescaler=start)
    update = trained(model, adapter, task=task, steps=3)
    moved = (update.rescaler - start).abs()
    assert moved.gt(1e-3).all()
    assert moved.lt(0.1).all()
    assert torch.equal(task.rescaler, torch.tensor([1.5, 0.5]))
    assert torch.equal(trained(model, adapter, task=task, steps=3).rescaler, update.rescaler)


def test_a_rescaler_that_is_not_learned_comes_back_as_it_was_sent(model, adapter):
    task = task_for(model, adapter, rescaler=torch.tensor([2.0, 3.0]))
    assert torch.equal(trained(model, adapter, task=task).rescaler, task.rescaler)


def test_a_client_without_examples_is_refused(model, adapter):
    with pytest.raises(DataError, match="client 0 has no training examples"):
        trained(model, adapter, rows=[])


def test_the_rate_warms_up_in_a_round_and_falls_over_the_run():
    plan = Training(steps=4, learning_rate=1.0, warmup_steps=1, final_share=0.5)
    assert [plan.rate(s, 1, 2) for s in range(4)] == [0.5, 0.9375, 0.875, 0.8125]
    assert [plan.rate(s, 2, 2) for s in range(4)] == [0.375, 0.6875, 0.625, 0.5625]


def test_routers_are_trained_and_attention_left_out_when_asked(tiny_model, random_adapter):
    settings_ = LoRA(rank=2, attention=False, router=True)
    model = tiny_model(adapter=settings_)
    layout = model.layout
    update = trained(model, Adapter(layout, torch.zeros(layout.size)), steps=1)
    assert {e.name.rpartition(".")[2] for e in layout.entries if e.layer is None} == {"shift"}
    shifts = [v for e, v in layout.views(update.delta.flat) if e.name.endswith("shift")]
    assert len(shifts) == 2
    assert all(shift.ne(0).any() for shift in shifts)


def test_row_losses_are_those_of_each_row_alone_and_average_to_the_mean_loss(tiny_model):
    model, rows = tiny_model(), list(ROWS)
    losses = row_losses(model, rows, 2, PAD)
    alone = [mean_loss(model, [row], 1, PAD) for row in rows]
    assert losses == pytest.approx(alone, rel=1e-5)
    targets = [len(row.ids) - row.prompt_length for row in rows]
    weighted = sum(x * n for x, n in zip(losses, targets, strict=True)) / sum(targets)
    assert weighted == pytest.approx(mean_loss(model, rows, 2, PAD), rel=1e-5)


def test_whoever_looks_on_is_told_of_every_step(model, adapter):
    told = []

    def own(client, task):
        for batch in client.batches(2):
            client.loss(batch).backward()
        return {}

    for step in (None, own):
        settings_ = Training(steps=2, batch_size=3, local_step=step)
        args = model, ROWS, PAD, task_for(model, adapter), settings_, 2, 0
        train_client(*args, told=lambda *counts: told.append(counts))
    assert told == [(0, 1, 2), (0, 2, 2)] * 2
