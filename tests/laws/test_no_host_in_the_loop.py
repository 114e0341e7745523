"""A GPU's step reads nothing back: on fake tensors, on a CPU with rows of no expert, compiled."""

from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_gpu import GPU, fake_gpu, move
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode

from fedmoe.adapter import Adapter
from fedmoe.aggregation.strategy import Layouts, Local
from fedmoe.data.text import Tokens, training_batches
from fedmoe.models import experts, routed
from fedmoe.models.adapted import LoRA
from fedmoe.models.experts import experts_forward
from fedmoe.training import client, learner
from fedmoe.training.router_losses import NO_LOSSES, router_training
from fedmoe.training.settings import Training

ROWS = [Tokens(tuple(range(2, 12 + i)), 4) for i in range(8)]
STEPS = Training(steps=1, accumulation=1, batch_size=4)


def batches():
    return list(islice(training_batches(ROWS, 4, 0, np.random.default_rng(0)), 1))


def steps_on_a_fake_gpu(model, given, settings=STEPS):
    """Train one whole step: forward, backward, clipping and optimiser; return the counts."""
    move(model)
    local = Local(Layouts.all(model.layout), Adapter(model.layout, torch.zeros(model.layout.size)))
    task = SimpleNamespace(round=1, client=0, top_k=2, rescaler=torch.ones(2))
    chance = torch.Generator()
    with model.counting() as counts, router_training(model.gates, NO_LOSSES, chance) as routers:
        # The host draws and counts from its own tensors, which are fake in here too.
        routers.begin, model.num_tokens = lambda done: None, lambda batch: 1
        client._optimise(model, iter(given), task, settings, 1, local, counts, routers)
    return counts


@pytest.fixture
def narrow(tiny_model):
    """A tiny model in bfloat16, in which alone a GPU's grouped products are."""

    def make(family):
        model = tiny_model(family, LoRA(rank=8), num_hidden_layers=1)
        model.model.to(torch.bfloat16)
        model.set_budget(2)
        return model

    return make


@pytest.mark.parametrize(("family", "recompute"), [("olmoe", False), ("mixtral", True)])
def test_a_whole_step_on_fake_tensors_asks_for_no_value(narrow, family, recompute):
    model, given = narrow(family), batches()
    model.set_recompute(recompute)
    with fake_gpu():
        assert steps_on_a_fake_gpu(model, given).device == GPU


def test_a_value_that_is_asked_for_is_seen(narrow, monkeypatch):
    model, given = narrow("olmoe"), batches()
    monkeypatch.setattr(learner, "clip", lambda grad, largest: float(grad.norm()))
    with fake_gpu(), pytest.raises(DataDependentOutputException):
        steps_on_a_fake_gpu(model, given)


# torch 2.13 makes an instance of torch.autograd.Function to look at it, and warns of that.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_takes_the_expert_path_in_one_graph(narrow, monkeypatch):
    """Forward and backward, with the very same values."""
    for module in (routed, experts):
        monkeypatch.setattr(module, "unwaited", lambda x: True)
    module = narrow("olmoe").layers[0].experts
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    index, weights = torch.arange(18).view(9, 2) % 7, torch.rand(9, 2)
    getattr(module, experts.STATE).valid = torch.arange(9) < 7
    found = []
    for compiled in (False, True):
        leaf = x.clone().requires_grad_()
        call = partial(experts_forward, module)
        if compiled:
            call = torch.compile(call, fullgraph=True, backend="aot_eager")
        out = call(leaf, index, weights)
        out.float().square().sum().backward()
        found.append((out, leaf.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    torch._dynamo.reset()


class Operators(TorchDispatchMode):
    """Counts operators; kernels that are started without one are added by hand."""

    started = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.started += 1
        return func(*args, **(kwargs or {}))

    def __getitem__(self, grid):
        return lambda *args, **options: setattr(self, "started", self.started + 1)


def operators_of_a_layer(fused=None):
    """Operators and kernels started in one forward and backward pass of a layer's experts."""
    shapes = (8, 64, 64), (8, 64, 32), (8, 8, 64), (8, 64, 8), (8, 8, 32), (8, 64, 8)
    gate_up, down, *factors = (torch.randn(shape, requires_grad=True) for shape in shapes)
    for factor in factors:
        factor.grad = torch.zeros_like(factor)
    module = torch.nn.Module()
    module.num_experts, module.act_fn = 8, torch.nn.SiLU()
    module.gate_up_proj, module.down_proj = (w.detach().bfloat16() for w in (gate_up, down))
    counts, valid = torch.zeros(8, dtype=torch.int64), torch.arange(40) < 37
    lora = experts.ExpertLoRA(*factors, 1.0)
    state = experts.ExpertState(lora, valid=valid, counts=counts, fused=fused is not None)
    setattr(module, experts.STATE, state)
    x, weights = torch.randn(40, 64).bfloat16().requires_grad_(), torch.rand(40, 2).requires_grad_()
    index, dy = torch.arange(80).view(40, 2) % 8, torch.ones(40, 64).bfloat16()
    with Operators() as operators, pytest.MonkeyPatch.context() as patch:
        for name in ("_product", "_outer"):
            if fused:
                patch.setattr(fused, name, operators)
        out = experts_forward(module, x, index, weights)
        torch.autograd.backward(out, dy, inputs=factors)  # `x` has its gradient, too, and no place
    return operators.started


BEFORE = 124
"""Operators of that pass when sizes were read back (one grouped block, as on a GPU)."""


def test_the_kernels_take_a_third_of_the_operators(monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed: its launches are NOT counted")
    from fedmoe.models import fused

    for module in (routed, experts):
        monkeypatch.setattr(module, "unwaited", lambda x: True)
    assert operators_of_a_layer() < BEFORE  # torch's way
    assert operators_of_a_layer(fused) <= BEFORE / 3
