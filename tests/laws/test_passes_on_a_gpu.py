"""A pass of several clients on a GPU: it reads nothing back, and starts fewer kernels than each."""

import pytest
import torch
from support.fake_gpu import GPU, fake_gpu, move
from torch.utils._python_dispatch import TorchDispatchMode

from fedmoe.data.text import Tokens, collate
from fedmoe.models import experts, routed, shared_pass
from fedmoe.models.adapted import LoRA
from fedmoe.models.together import Together
from fedmoe.training.client import _accumulate
from fedmoe.training.side_by_side import accumulate

BATCHES = [collate([Tokens(tuple(range(2, n)), 4)] * 3, 0) for n in (14, 14, 17, 17)]


class Counter(TorchDispatchMode):
    """Counts operations."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def narrow(tiny_model):
    """A tiny model in bfloat16, in which alone a GPU's grouped products are."""

    def make(**changes):
        model = tiny_model("olmoe", LoRA(rank=8), num_hidden_layers=1, **changes)
        model.model.to(torch.bfloat16)
        model.bind(model.layout)
        return model

    return make


def passed(model, top_ks):
    """Forward and backward of all clients."""
    model.set_budget = lambda *_: None  # the host looks at its own rescalings, fake in here too
    together = Together(model, model.layout, top_ks)
    accumulate(together, {i: [batch] for i, batch in enumerate(BATCHES)})
    return together


@pytest.mark.parametrize("top_ks", [(2, 2, 2, 2), (4, 2, 1, 2)])
def test_a_pass_on_fake_tensors_asks_for_no_value(narrow, top_ks):
    model = narrow()
    model.set_budget(max(top_ks))
    with fake_gpu():
        move(model)
        assert passed(model, top_ks).model.grad.device == GPU


def test_it_has_a_processors_values_in_fewer_operations_than_its_clients_alone(
    tiny_model, random_adapter, monkeypatch
):
    model, found = tiny_model("olmoe", LoRA(rank=8), num_hidden_layers=1), []
    adapters = [random_adapter(model.layout, seed) for seed in range(4)]
    for on_gpu in (False, True):
        for module in (routed, shared_pass, experts):
            monkeypatch.setattr(module, "unwaited", lambda x, on_gpu=on_gpu: on_gpu)
        together = Together(model, model.layout, (2, 2, 2, 2))
        together.load(torch.stack([adapter.flat for adapter in adapters]))
        with model.counting() as counts, Counter() as once:
            accumulate(together, dict(enumerate([batch] for batch in BATCHES)))
        found.append((model.grad.clone(), counts.clone()))
    (one, counts), (other, same) = found
    assert torch.equal(counts, same)
    assert float((one - other).norm() / one.norm()) < 1e-5
    model.load(adapters[0])
    with Counter() as alone:
        for batch in BATCHES:
            _accumulate(model, [batch])
    assert once.number * 2 < alone.number, (once.number, alone.number)
