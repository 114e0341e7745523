"""Clients in one pass against the same clients one after another."""

import numpy as np
import pytest
import torch

from fedmoe.aggregation.fedprox import FedProx
from fedmoe.aggregation.ffa_lora import FFALoRA
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.data.text import Tokens, collate
from fedmoe.messages.records import Task
from fedmoe.models import packed
from fedmoe.models.adapted import LoRA
from fedmoe.models.rescaling import LearnedRescaling, StaticRescaling
from fedmoe.models.together import Together
from fedmoe.training.client import Trainee, train_client
from fedmoe.training.loss import response_loss
from fedmoe.training.settings import Training
from fedmoe.training.side_by_side import accumulate, train_side_by_side


def rows_of(seed, *lengths):
    """Examples of random ids; of n tokens the first third is the prompt."""
    rng = np.random.default_rng(seed)
    return [Tokens(tuple(rng.integers(2, 64, n).tolist()), max(1, n // 3)) for n in lengths]


ROWS = [rows_of(0, 4, 9, 6, 12, 5, 7), rows_of(1, 20, 3, 8), rows_of(2, 5, 6, 7, 8, 30, 4, 4)]


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def alone(model, adapter, batch, top_k):
    """The gradient and the counts of one client's step."""
    model.load(adapter)
    model.set_budget(top_k)
    model.grad.zero_()
    with model.counting() as counts:
        (response_loss(model, batch) / len(batch.targets)).backward()
    return model.grad.clone(), counts.clone()


def together(model, adapters, batches, top_ks):
    """The same of several clients at once, by their place."""
    passed = Together(model, model.layout, top_ks)
    passed.load(torch.stack([adapter.flat for adapter in adapters]))
    with model.counting() as counts:
        accumulate(passed, {place: [batch] for place, batch in batches.items()})
    passed.take_gradients(found := torch.empty(len(adapters), model.layout.size))
    return found, passed.by_client(counts)


@pytest.mark.parametrize(
    ("family", "top_ks", "changes"),
    [
        ("olmoe", (1, 1, 1), {}),
        ("olmoe", (4, 1, 2), {"num_key_value_heads": 2}),
        ("mixtral", (1, 2, 2), {"num_key_value_heads": 2}),
        ("qwen2_moe", (2, 2, 2), {}),
    ],
)
def test_gradients_and_counts_are_those_of_each_client_alone(
    tiny_model, random_adapter, family, top_ks, changes
):
    model = tiny_model(family, **changes)
    adapters = [random_adapter(model.layout, seed) for seed in range(3)]
    batches = dict(enumerate(collate(rows, 0) for rows in ROWS))
    each = zip(adapters, batches.values(), top_ks, strict=True)
    wanted = [alone(model, *one) for one in each]
    grads, counts = together(model, adapters, batches, top_ks)
    for place, (grad, counted) in enumerate(wanted):
        assert relative(grads[place], grad) < 1e-5
        assert torch.equal(counts[place], counted)


def test_a_client_without_a_batch_or_with_broken_values_changes_no_other(
    tiny_model, random_adapter
):
    model = tiny_model()
    adapters = [random_adapter(model.layout, seed) for seed in range(3)]
    batches = dict(enumerate(collate(rows, 0) for rows in ROWS))
    wanted = alone(model, adapters[2], batches[2], 2)[0]
    adapters[1].flat.fill_(float("nan"))
    grads, counts = together(model, adapters, {1: batches[1], 2: batches[2]}, (4, 1, 2))
    assert relative(grads[2], wanted) < 1e-5
    assert grads[1].isnan().any()
    assert not grads[0].any()
    assert not counts[0].any()


def test_batches_of_one_length_have_the_states_that_they_have_without_padding(tiny_model):
    model = tiny_model()
    packed.register()
    batches = dict(enumerate(collate(rows, 0) for rows in ROWS))
    found = []
    for even in (False, True):
        made = packed.Packed.of(batches, model.device, even=even)
        assert len(made.runs) == (1 if even else 3)
        found.append(packed.packed_states(model.model, made)[made.positions])
    torch.testing.assert_close(*found)


def trainees(model, adapter, strategy=None, **settings):
    """Clients of unlike rows and numbers of steps."""
    found = []
    for client, rows in enumerate(ROWS):
        rescaler = torch.tensor([1.0 + client / 4, 0.75])
        task = Task(2, client, "t", 1 + client, rescaler, adapter, f"c{client}")
        layouts = strategy.layouts(model.layout, 2) if strategy else Layouts.all(model.layout)
        made = Training(batch_size=3, warmup_steps=1, epochs=1.5, **settings).on(len(rows))
        local = strategy.local(task, layouts, adapter) if strategy else Local(layouts, adapter)
        found.append(Trainee(task, rows, made, local))
    assert len({client.settings.steps for client in found}) > 1
    return found


@pytest.mark.parametrize(
    ("rescaling", "strategy", "settings"),
    [
        (LearnedRescaling(), None, {"accumulation": 2, "recompute": True}),
        (StaticRescaling(), FedProx(mu=0.5), {}),
        (None, FFALoRA(), {"clip_norm": 0.01}),
    ],
)
def test_a_whole_round_is_that_of_each_client_alone(
    tiny_model, random_adapter, rescaling, strategy, settings
):
    model = tiny_model(rescaling=rescaling, adapter=LoRA(rank=2))
    # In double precision: AdamW makes steps of one size of gradients of any, rounding included.
    model.model.double()
    model.bind(model.layout)
    adapter = random_adapter(model.layout)
    wanted = [
        train_client(model, x.rows, 0, x.task, x.settings, 4, 7, x.local)
        for x in trainees(model, adapter, strategy, **settings)
    ]
    found = train_side_by_side(model, trainees(model, adapter, strategy, **settings), 0, 4, 7)
    for one, other in zip(found, wanted, strict=True):
        assert relative(one.delta.flat, other.delta.flat) < 1e-5
        assert torch.equal(one.counts, other.counts)
        assert (one.tokens, one.steps, one.client) == (other.tokens, other.steps, other.client)
        torch.testing.assert_close(one.rescaler, other.rescaler)
        assert one.loss_before == pytest.approx(other.loss_before)
        assert one.loss_after == pytest.approx(other.loss_after)
