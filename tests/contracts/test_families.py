"""One contract for every family of sparse MoE models, on tiny random models: what they compute."""

import pytest
import torch
from family_contract import (
    IDS,
    KINDS,
    ROUNDING,
    SETTINGS,
    error,
    every_family,
    fresh,
    logits_of,
    original,
    random_rows,
    slow_but,
    trained,
)
from family_models import on_interface, tiny_family

from fedmoe.data.text import Tokens, collate
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.decode import greedy
from fedmoe.models.families import FAMILIES, set_top_k
from fedmoe.models.rescaling import NoRescaling
from fedmoe.training.loss import response_loss


@every_family
@torch.no_grad()
def test_without_an_adapter_at_full_budget_it_is_the_original(kind):
    """On our experts but for rounding, as sums are in another order; on its own to the bit."""
    model, theirs = fresh(kind), original(kind)(input_ids=IDS).logits
    assert error(logits_of(model), theirs) < ROUNDING
    if on_interface(FAMILIES[kind]):
        model.model.set_experts_implementation("eager")
        ours = logits_of(model)
        FAMILIES[kind].install(model.model)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "changes", "sparse"),
    [
        ("mixtral", {"hidden_act": "gelu"}, 2),
        ("granitemoeshared", {}, 2),
        ("qwen3_moe", {"decoder_sparse_step": 2, "hidden_act": "gelu"}, 1),
    ],
    ids=["Grok-1", "Arctic", "GLaM"],
)
@torch.no_grad()
def test_the_closest_class_of_a_model_without_one_is_the_original(kind, changes, sparse):
    theirs = tiny_family(FAMILIES[kind], **changes)(input_ids=IDS).logits
    model = AdaptedModel(tiny_family(FAMILIES[kind], **changes), SETTINGS, NoRescaling())
    assert len(model.layers) == sparse
    assert error(logits_of(model), theirs) < ROUNDING
    model.set_budget(1)
    assert error(logits_of(model), theirs) > 1e-3


@every_family
@torch.no_grad()
def test_a_smaller_k_changes_what_is_computed_and_is_counted_exactly(kind, random_adapter):
    model = trained(kind, random_adapter)
    results, full = {}, model.full_top_k
    model.check_top_ks(set(range(1, full + 1)))
    for k in (1, max(1, full // 2), full):
        model.set_budget(k)
        chosen = []
        hooks = [
            layer.router.register_forward_hook(lambda _m, _i, out, to=chosen: to.append(out[2]))
            for layer in model.layers
        ]
        with model.counting() as counts:
            results[k] = logits_of(model)
        for hook in hooks:
            hook.remove()
        slow = [[sum(e == j for e in i.flatten().tolist()) for j in range(8)] for i in chosen]
        assert counts.tolist() == slow
        assert counts.sum(1).tolist() == [IDS.numel() * k] * len(model.layers)
    assert error(results[1], results[full]) > 1e-3


@every_family
@torch.no_grad()
def test_a_smaller_k_is_the_original_with_that_k(kind):
    """Phi-MoE's own router ignores top_k; what k = 1 should be is shown further down."""
    if kind == "phimoe":
        pytest.skip("transformers' Phi-MoE has no smaller k")
    model, base = fresh(kind), original(kind)
    model.set_budget(1)
    having = [m for m in base.modules() if hasattr(m, "top_k")]
    before = [m.top_k for m in having]
    try:
        for module in having:
            module.top_k = 1
        theirs = base(input_ids=IDS).logits
    finally:
        for module, top_k in zip(having, before, strict=True):
            module.top_k = top_k
    assert error(logits_of(model), theirs) < ROUNDING


@every_family
def test_padding_changes_no_bit_of_loss_counts_and_gradients(kind, random_adapter):
    model = trained(kind, random_adapter)
    model.set_budget(2)
    rows = [Tokens(tuple(3 + (5 * i + 7 * n) % 61 for i in range(n)), 1) for n in (9, 4, 6)]
    results = []
    for pad in (2, 63):
        model.grad.zero_()
        with model.counting() as counts:
            loss = response_loss(model, collate(rows, pad))
            loss.backward()
        results.append((loss.item(), counts, model.grad.clone()))
    (loss, counts, grad), again = results
    assert loss == again[0]
    assert torch.equal(counts, again[1])
    assert torch.equal(grad, again[2])
    assert counts.sum(1).tolist() == [2 * sum(len(row.ids) - 1 for row in rows)] * len(model.layers)
    alone = sum(response_loss(model, collate([row], 0)).item() for row in rows)
    assert loss == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("kind", slow_but(["jamba", "minimax", "gpt_oss"], KINDS))
def test_answers_in_a_batch_are_the_answers_alone(kind, random_adapter):
    """Left padding reaches neither attention nor a recurrent state."""
    model = trained(kind, random_adapter)
    model.set_budget(2)
    prompts = [row[: 2 + 3 * i] for i, row in enumerate(IDS.tolist())]
    together = greedy(model.model, prompts, 5, pad=0, end=1)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = greedy(model.model, [prompt], 5, pad=0, end=1)
        assert answer[: len(alone)] == alone


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_computing_activations_again_changes_no_bit(kind, random_adapter):
    model, grads = trained(kind, random_adapter), []
    for recompute in (False, True):
        model.set_recompute(recompute)
        model.grad.zero_()
        logits_of(model).square().sum().backward()
        grads.append(model.grad.clone())
    model.set_recompute(False)
    assert torch.equal(*grads)


def test_phimoes_single_expert_is_what_sparsemixer_picks_first():
    """Against its formula for one expert, a softmax over the logits near the largest."""
    layer, x = fresh("phimoe").layers[0], random_rows(20, 32)
    logits, full_weights, full_index = layer.router(x)
    set_top_k([layer], 1)
    _, weights, index = layer.router(x)
    set_top_k([layer], 2)
    assert torch.equal(weights, full_weights[:, :1])
    assert torch.equal(index, full_index[:, :1])
    jitter = layer.router.router_jitter_noise
    for t in range(20):
        top = logits[t].max()
        near = [z for z in logits[t] if (top - z) / max(z.abs(), top) <= 2 * jitter]
        expected = 1 / sum(torch.exp(z - top) for z in near)
        assert index[t, 0] == logits[t].argmax()
        torch.testing.assert_close(weights[t, 0], expected)
