"""FLOPs of ledger and planner against torch's own count of a real local round."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedmoe.adapter import Adapter
from fedmoe.aggregation import FedAvg
from fedmoe.budget.cost import cost
from fedmoe.budget.model import step_flops
from fedmoe.budget.shape import Setting, shape_of
from fedmoe.data.text import Tokens
from fedmoe.messages.compression import NoCompression
from fedmoe.messages.records import Task
from fedmoe.models.adapted import LoRA
from fedmoe.training.client import train_client
from fedmoe.training.loss import mean_loss
from fedmoe.training.settings import Training

ROWS = [Tokens(tuple(range(2 + n, 26 + n)), 16) for n in range(4)]
"""Of one length: padding, which no ledger counts, would pass through attention."""
TRAINING = Training(steps=3, batch_size=2, probe_examples=2)


def _grouped(a, b, *_, **__):
    """Rows by their expert's weights, or two stacks of rows: one product a row either way."""
    return 2 * a[0] * a[1] * b[-1]


class Untracked:
    """In place of the counter's tracker of modules, which refuses the experts' `autograd.grad`."""

    parents = ("Global",)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def _count(call):
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped})
    counter.mod_tracker = Untracked()
    with counter:
        result = call()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_a_local_round_computes_what_the_ledger_counts(tiny_model, top_k, attention):
    """All products but attention's scores, which torch does not count on a processor."""
    model = tiny_model(adapter=LoRA(rank=4, alpha=8.0, attention=attention))
    task = Task(1, 0, "all", top_k, torch.ones(2), Adapter(model.layout, model.flat.clone()))
    counted, update = _count(lambda: train_client(model, ROWS, 0, task, TRAINING, 1, 0))
    probed, _ = _count(lambda: mean_loss(model, ROWS[::2], 2, 0))
    price = cost(model, FedAvg().layouts(model.layout, 1), top_k, 64, NoCompression())
    assert price.train_flops(update.tokens, update.targets) == counted - 2 * probed


def test_a_share_of_responses_is_what_a_mean_token_costs(tiny_model):
    model = tiny_model()
    args = model, FedAvg().layouts(model.layout, 1), 2, 64, NoCompression()
    all_of_them, part = cost(*args), cost(*args, target_share=0.25)
    assert part.train_flops_per_token < all_of_them.train_flops_per_token
    for price in (all_of_them, part):
        assert price.train_flops(400, 100) == pytest.approx(400 * part.train_flops_per_token)
    # The planner's step is the same, and attention's scores.
    shape, setting = shape_of(model), Setting(2, 4, 100, 25)
    scores = 7 * shape.num_layers * shape.query * 400 * 100
    assert step_flops(shape, setting) == pytest.approx(part.train_flops(400, 100) + scores)
