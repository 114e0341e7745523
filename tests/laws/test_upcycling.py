"""Laws of upcycling: properties that carry over from the dense model, and those of the parts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from upcycled import tiny_dense

from fedmoe.base_models.upcycling import observe
from fedmoe.base_models.upcycling.copies import Copy
from fedmoe.base_models.upcycling.dense import DenseFFN
from fedmoe.base_models.upcycling.groups import clusters, neighbours
from fedmoe.base_models.upcycling.router import ROUTER_STD, fit_router, random_router
from fedmoe.base_models.upcycling.split import Split, choose_groups
from fedmoe.base_models.upcycling.upcycle import convert, halvings
from fedmoe.models.families import check_top_k, moe_layers, set_top_k

IDS = torch.arange(2, 98).view(2, 48)
EXACT = 1e-3
"""The router's logits spread by 1e-4; a neuron that is lost costs 1e-2 and more."""


def quiet(*_):
    """No progress."""


def inputs_of(dense):
    seen = [[] for _ in dense.model.layers]
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, x, into=into: into.append(x[0].flatten(0, 1)))
        for layer, into in zip(dense.model.layers, seen, strict=True)
    ]
    dense(IDS)
    for hook in hooks:
        hook.remove()
    return [torch.cat(parts) for parts in seen]


def upcycled(dense, method):
    return convert(method, dense, inputs_of(dense), 0, quiet)


def difference(dense, sparse):
    wanted, found = dense(IDS).logits, sparse(IDS).logits
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize(
    "method",
    [
        Split(num_experts=5),
        Split(num_experts=4, shared_width=16),
        Split(num_experts=8, shared_width=48, grouping="neighbours", router="random"),
    ],
    ids=["all in experts", "some shared", "neighbours, random router"],
)
def test_a_split_model_with_all_experts_active_computes_the_dense_model(kind, method):
    dense = tiny_dense(kind)
    sparse = upcycled(dense, method)
    assert difference(dense, sparse) < EXACT
    set_top_k(moe_layers(sparse), 1)
    assert difference(dense, sparse) > 10 * EXACT


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_copied_model_computes_the_dense_model_at_every_top_k(kind):
    dense = tiny_dense(kind)
    sparse = upcycled(dense, Copy(num_experts=4, top_k=2))
    for top_k in (1, 2, 3, 4):
        set_top_k(moe_layers(sparse), top_k)
        torch.testing.assert_close(sparse(IDS).logits, dense(IDS).logits, rtol=1e-4, atol=1e-4)


def test_a_split_expert_weighs_the_same_however_many_are_active():
    """Weights that are renormalised over the chosen ones would grow as experts are left out."""
    layers = moe_layers(upcycled(tiny_dense(), Split(num_experts=5)))
    for top_k in (1, 2, 5):
        set_top_k(layers, top_k)
        _, weights, _ = layers[0].router(
            torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
        )
        torch.testing.assert_close(weights, torch.full((9, top_k), 1 / 5), rtol=1e-2, atol=0)


def test_copies_are_told_apart_by_their_routers():
    sparse = upcycled(tiny_dense(), Copy(num_experts=4, top_k=1))
    for layer in moe_layers(sparse):
        _, _, index = layer.router(torch.randn(200, 32, generator=torch.Generator().manual_seed(0)))
        assert len(index.unique()) == 4


@pytest.mark.parametrize("method", [Split(num_experts=4, top_k=2), Copy(num_experts=4, top_k=2)])
def test_its_routers_honour_a_changed_top_k(method):
    layers = moe_layers(upcycled(tiny_dense(), method))
    assert [layer.router.top_k for layer in layers] == [2, 2]
    check_top_k(layers, {1, 2, 3, 4})


@given(
    seed=st.integers(0, 99),
    num_experts=st.integers(2, 6),
    width=st.integers(1, 5),
    shared=st.integers(0, 7),
    grouping=st.sampled_from(["neighbours", "clusters"]),
)
def test_every_neuron_is_shared_or_in_exactly_one_expert(
    seed, num_experts, width, shared, grouping
):
    rng = np.random.default_rng(seed)
    num_neurons = shared + num_experts * width
    sizes = torch.from_numpy(rng.random((40, num_neurons)))
    method = Split(num_experts=num_experts, shared_width=shared, grouping=grouping)
    always, groups = choose_groups(sizes, method, rng)
    assert groups.shape == (num_experts, width)
    assert sorted([*always.tolist(), *groups.flatten().tolist()]) == list(range(num_neurons))
    assert set(always.tolist()) == set(sizes.mean(0).topk(shared).indices.tolist())


def test_clusters_find_neurons_that_are_active_together():
    """32 neurons in 4 hidden kinds: each token wakes one kind."""
    rng = np.random.default_rng(0)
    kind = torch.from_numpy(rng.permutation(np.repeat(np.arange(4), 8)))
    awake = torch.from_numpy(rng.integers(0, 4, 300))
    sizes = (awake[:, None] == kind) + 0.1 * torch.from_numpy(rng.random((300, 32)))
    expert = clusters(sizes, 4, rng)
    for e in range(4):
        assert len(kind[expert == e].unique()) == 1
    assert any(len(kind[neighbours(32, 4) == e].unique()) > 1 for e in range(4))


def test_a_fitted_router_chooses_the_expert_that_matters():
    """Each expert's output is large along its own direction; chance is right 1 time in 4."""
    generator = torch.Generator().manual_seed(0)
    x, hidden = (torch.randn(n, 16, generator=generator) for n in (2000, 4))
    outputs = 5 + x @ hidden.T + 0.3 * torch.randn(2000, 4, generator=generator)
    fit, new = slice(0, 1000), slice(1000, 2000)
    right = {}
    for name, router in {
        "fitted": fit_router(x[fit], outputs[fit]),
        "random": random_router(x[fit], 4, np.random.default_rng(0)),
    }.items():
        logits = x @ router.T
        assert 0.9 < float(logits.std()) / ROUTER_STD < 1.1
        chosen = logits.softmax(-1).topk(1).indices[:, 0]
        right[name] = (chosen == outputs.argmax(1))[new].double().mean()
    assert right["fitted"] > 0.8 > 0.5 > right["random"]


def test_the_same_seed_gives_the_same_bits():
    dense, method = tiny_dense(), Split(num_experts=4, shared_width=16)
    first, second = (upcycled(dense, method).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_split_layer_agrees_with_the_formula():
    """One token and one neuron at a time: the chosen experts' neurons and the shared ones count."""
    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    generator = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(s, generator=generator) for s in ((12, 6), (12, 6), (6, 12)))
    x = torch.randn(7, 6, generator=generator)
    ffn = DenseFFN(gate, up, down, "silu")
    method = Split(num_experts=4, shared_width=4, top_k=2)
    tensors = method.layer(ffn, x, np.random.default_rng(0))
    config = Qwen2MoeConfig(
        hidden_size=6,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=2,
        shared_expert_intermediate_size=4,
        norm_topk_prob=False,
        experts_implementation="eager",
    )
    block = Qwen2MoeSparseMoeBlock(config)
    block.load_state_dict(tensors)

    sizes = ffn.neurons(x).abs() * down.norm(dim=0)
    shared, groups = choose_groups(sizes, method, np.random.default_rng(0))
    wanted = torch.zeros(7, 6)
    for t in range(7):
        scores = [float(row @ x[t]) for row in tensors["gate.weight"]]
        chosen = sorted(range(4), key=lambda e: -scores[e])[:2]
        for n in [*shared.tolist(), *groups[chosen].flatten().tolist()]:
            g, u = float(gate[n] @ x[t]), float(up[n] @ x[t])
            wanted[t] += down[:, n] * u * g / (1 + np.exp(-g))
    with torch.no_grad():
        torch.testing.assert_close(block(x[None])[0], wanted, rtol=5e-3, atol=1e-3)


def test_layer_inputs_leave_out_the_padding():
    from fedmoe.data.text import Tokens

    dense = tiny_dense()
    rows = [Tokens(tuple(range(2, 2 + n)), 1) for n in (3, 9)]
    seen = observe.layer_inputs(dense, rows, 2, 0, quiet)
    assert [tuple(x.shape) for x in seen] == [(2 + 8, 32)] * 2


def test_the_loss_is_the_mean_over_response_tokens():
    from fedmoe.data.text import Tokens

    dense = tiny_dense()
    rows = [Tokens(tuple(range(2, 12)), 4), Tokens(tuple(range(20, 50)), 10)]
    slow = []
    for row in rows:
        log_p = dense(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        slow += [-log_p[i - 1, row.ids[i]] for i in range(row.prompt_length, len(row.ids))]
    assert observe.loss(dense, rows, 2, 0) == pytest.approx(float(sum(slow) / len(slow)), rel=1e-4)


def test_tiers_are_halvings():
    assert halvings(8) == [8, 4, 2, 1]
    assert halvings(6) == [6, 3, 1]
    assert halvings(1) == [1]
