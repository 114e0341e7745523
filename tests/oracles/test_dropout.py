"""Dropout on LoRA's inputs: PEFT's formula, the same mask in backward, and none elsewhere."""

from dataclasses import replace

import pytest
import torch
from test_experts import SCALE, draw, outcome
from test_peft import IDS, lora_layers, our_logits
from torch import nn

from fedmoe.aggregation import FLoRA
from fedmoe.config import Experiment
from fedmoe.data.text import Tokens
from fedmoe.errors import ConfigError
from fedmoe.export.peft import to_peft
from fedmoe.messages.records import Task
from fedmoe.models import routed
from fedmoe.models.adapted import LoRA
from fedmoe.models.dropout import Dropout, Mask
from fedmoe.models.experts import SparseExperts
from fedmoe.models.routed import blocks, route
from fedmoe.training.client import train_client
from fedmoe.training.loss import mean_loss
from fedmoe.training.settings import Training

ROWS = [Tokens(tuple(range(2, 2 + n)), n // 3) for n in (4, 9, 6, 12, 5, 7)]
P = 0.25
MASK = Mask(P, 3)


@pytest.fixture(scope="module")
def models(tiny_model):
    """A model with dropout, and the same one without."""
    return [tiny_model(adapter=LoRA(rank=2, dropout=p)) for p in (P, 0.0)]


@pytest.fixture(scope="module")
def adapter(models, random_adapter):
    return random_adapter(models[0].layout)


def trained(model, adapter, client=0, **settings):
    """A local round of two steps."""
    rescaler = torch.ones(model.layout.num_layers)
    task = Task(1, client, "t", 2, rescaler, adapter)
    made = Training(steps=2, batch_size=3, **settings)
    return train_client(model, ROWS, 0, task, made, num_rounds=2, seed=0)


def row_masks(index, size, width, inner):
    """Each row's two masks, by token and slot, as the fast path's blocks draw them."""
    found, zeros = {}, torch.zeros(0, dtype=torch.float64)
    for i, block in enumerate(blocks(route(index, size), False)):
        rows = len(block.token)
        masks = [MASK.of(zeros.new_empty(rows, w), 2 * i + n) for n, w in enumerate((width, inner))]
        for row, slot in enumerate(block.slot.tolist()):
            found[slot] = masks[0][row], masks[1][row]
    return found


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("block_rows", [4, 1024])
def test_values_and_gradients_are_the_slow_formulas(monkeypatch, recompute, block_rows):
    monkeypatch.setattr(routed, "BLOCK_ROWS", block_rows)
    leaves, index = draw(tokens=9, size=(4, 3), seed=1, sentinels=0.2)

    def fast(x, weights, index, w1, w2, factors, act):
        end = (recompute, None, None, MASK)
        routing = route(index, len(w1))
        return SparseExperts.apply(x, weights, w1, w2, *factors, SCALE, routing, act, *end)

    def slow(x, weights, index, w1, w2, factors, act):
        a1, b1, a2, b2 = factors
        masks, rows = row_masks(index, len(w1), x.shape[1], a2.shape[2]), []
        for t in range(len(x)):
            y = x[t] * 0
            for j, e in enumerate(index[t].tolist()):
                if e == len(w1):
                    continue
                m1, m2 = masks[t * index.shape[1] + j]
                gate, up = (w1[e] @ x[t] + SCALE * b1[e] @ (a1[e] @ (m1 * x[t]))).chunk(2)
                h = act(gate) * up
                y = y + weights[t, j] * (w2[e] @ h + SCALE * b2[e] @ (a2[e] @ (m2 * h)))
            rows.append(y)
        return torch.stack(rows)

    for ours, wanted in zip(
        outcome(fast, leaves, index, nn.SiLU()),
        outcome(slow, leaves, index, nn.SiLU()),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_attention_drops_as_pefts_layers_do(models, adapter, tiny_base):
    """PEFT's own formula, with masks of ours in the place of its `nn.Dropout`."""
    model, off = models[0], adapter.copy()
    for entry, view in off.layout.views(off.flat):
        if entry.layer is not None and entry.kind == "B":
            view.zero_()  # PEFT has no dropout on fused experts
    model.load(off)
    model.set_budget(4)
    wrapped, drops = to_peft(off, tiny_base()), Dropout(P, torch.Generator().manual_seed(5))
    for state in model.states:  # experts would draw between the layers
        state.drops = None
    linears = dict(model.linears)
    for linear in linears.values():
        linear.drops = drops
    ours = our_logits(model)
    again = Dropout(P, torch.Generator().manual_seed(5))

    class Masked(nn.Module):
        def forward(self, x):
            return x * again.next().of(x.flatten(0, -2)).view_as(x)

    for name, layer in lora_layers(wrapped):
        if name in linears:
            layer.lora_dropout["default"] = Masked()
    theirs = wrapped(input_ids=IDS).logits
    for linear in linears.values():
        linear.drops = None
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, our_logits(model), atol=1e-3)
    grads = []
    for logits in (ours, theirs):
        model.grad.zero_()
        logits.log_softmax(-1)[..., 7].sum().backward()
        grads.append(model.grad.clone())
    views = {entry.name: view for entry, view in model.layout.views(grads[0])}
    for name, layer in lora_layers(wrapped):
        if name in linears:
            pairs = (("A", layer.lora_A), ("B", layer.lora_B))
            for factor, theirs_of in pairs:
                wanted = theirs_of["default"].weight.grad
                torch.testing.assert_close(views[f"{name}.{factor}"], wanted, rtol=1e-4, atol=1e-5)
    model.grad.zero_()


def test_a_mask_drops_its_share_and_keeps_the_mean():
    mask = Mask(0.25, 7).of(torch.empty(400, 500))
    assert mask.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (mask == 0).float().mean().item() == pytest.approx(0.25, abs=0.005)
    assert not torch.equal(mask, Mask(0.25, 7).of(mask, 1))


def test_the_same_round_gives_the_same_bits_recomputed_or_not_and_another_round_others(
    models, adapter
):
    model = models[0]
    first, again = trained(model, adapter), trained(model, adapter)
    assert first.delta.digest() == again.delta.digest()
    assert trained(model, adapter, recompute=True).delta.digest() == first.delta.digest()
    other = trained(model, adapter, client=1)
    assert other.delta.digest() != first.delta.digest()
    assert trained(models[1], adapter).delta.digest() != first.delta.digest()


def test_dropout_acts_in_training_alone(models, adapter):
    update = trained(models[0], adapter)
    assert not any(part.drops for part in (*models[0].states, *models[0].linears.values()))
    losses = []
    for model in models:
        model.load(adapter)
        model.set_budget(2)
        losses.append(mean_loss(model, ROWS, 3, 0))
    assert losses[0] == losses[1] == update.loss_before


def test_every_step_has_another_mask(models, adapter):
    model = models[0]
    model.load(adapter)
    with model.dropping(torch.Generator().manual_seed(0)):
        assert not torch.equal(our_logits(model), our_logits(model))
    assert torch.equal(our_logits(model), our_logits(model))


def test_a_merged_part_is_no_lora_to_drop_inputs_of():
    lora = replace(LoRA(), dropout=0.1)
    with pytest.raises((ConfigError, ValueError), match="would drop inputs of the merged part"):
        Experiment(adapter=lora, aggregation=FLoRA())
