"""Subsets of experts: merging and remapping against a slow loop, dropping against -inf logits."""

import pytest
import torch
import torch.nn.functional as F
from family_models import tiny_family
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from fedmoe.data.text import Tokens, collate
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.experts import experts_forward
from fedmoe.models.families import FAMILIES
from fedmoe.models.memory.stored import Elsewhere, Quantised, quantised
from fedmoe.models.memory.subset import Subset, drop_fault, merging_shares, most_active
from fedmoe.models.rescaling import NoRescaling
from fedmoe.training.loss import response_loss

SETTINGS = LoRA(rank=4, alpha=8.0)
COUNTS = torch.tensor([[5, 0, 2, 9, 0, 1, 3, 3], [0, 0, 0, 7, 0, 8, 9, 2]])
MERGE = Subset(keep=3, left_out="merge")
CAUSAL = {kind: family for kind, family in FAMILIES.items() if family.task == "causal"}
DROPPED = [k for k, f in CAUSAL.items() if not (f.corrected or f.groups or f.scaled)]
DROPPED.remove("phimoe")
FAST = ("flint", "olmoe", "mixtral", "gpt_oss", "llama4_text", "jamba", "granitemoe", "dbrx")
"""Those of unlike rules; the others are looked at with `slow`."""


@pytest.fixture(scope="module")
def family_model(random_adapter):
    """A function that makes a tiny model of a family with an adapter that changes something."""

    def make(kind, dtype=torch.float32):
        model = AdaptedModel(tiny_family(FAMILIES[kind]).to(dtype), SETTINGS, NoRescaling())
        model.load(random_adapter(model.layout))
        return model

    return make


def counts_for(model):
    """The counts of two layers, as many times over as there are further ones."""
    layers = model.layout.num_layers
    return COUNTS.repeat(-(-layers // 2), 1)[:layers].contiguous()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 12))
def test_the_most_active_are_kept_and_of_equals_the_first(row, keep):
    slow = sorted(range(len(row)), key=lambda e: (-row[e], e))[:keep]
    kept = most_active(torch.tensor([row]), keep)[0]
    assert kept.nonzero().flatten().tolist() == sorted(slow)
    if kept.all():
        return
    shares = merging_shares(torch.tensor(row), kept)
    others = [e for e in range(len(row)) if e not in slow]
    total = sum(row[e] for e in others)
    for e, share in enumerate(shares.tolist()):
        wanted = (row[e] / total if total else 1 / len(others)) if e in others else 0
        assert share == pytest.approx(wanted, abs=1e-15)


def slow_layer(experts, lora, hidden, index, weights, kept, counts):
    """One token and one choice at a time, in float64; an expert left out is the merged one."""
    w1, w2 = experts.gate_up_proj.detach(), experts.down_proj.detach()
    total = sum(int(counts[e]) for e in range(len(kept)) if not kept[e])
    left = [e for e in range(len(kept)) if not kept[e]]
    merged = [torch.zeros_like(w[0]) for w in (w1, w2)]
    for e in left:
        share = int(counts[e]) / total if total else 1 / len(left)
        merged = [m + share * w[e] for m, w in zip(merged, (w1, w2), strict=True)]
    rows = []
    for t in range(len(hidden)):
        y = torch.zeros_like(hidden[t])
        for j, e in enumerate(index[t].tolist()):
            if kept[e]:
                first = w1[e] + lora.scale * lora.gate_up_B[e].double() @ lora.gate_up_A[e].double()
                second = w2[e] + lora.scale * lora.down_B[e].double() @ lora.down_A[e].double()
            else:
                first, second = merged
            gate, up = (first @ hidden[t]).chunk(2)
            y = y + weights[t, j] * (second @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


@settings(max_examples=12)
@given(st.integers(0, 2**31), st.integers(3, 7), st.booleans(), st.booleans())
def test_merged_output_and_gradients_are_those_of_a_slow_loop(
    family_model, seed, keep, none, again
):
    model = family_model("olmoe", torch.float64)
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(2, 8, dtype=torch.int64)
    if not none:
        counts = torch.randint(0, 5, (2, 8), generator=generator)
    model.kept.keep(counts, Subset(keep=keep, left_out="merge"))
    model.set_recompute(again)
    layer, state = model.layers[1], model.states[1]
    hidden = torch.randn(20, 32, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(20, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    index = torch.rand(20, 8, generator=generator).argsort(-1)[:, :4]
    leaves = [hidden, weights, *state.lora[:4]]
    probe = torch.randn(20, 32, generator=generator, dtype=torch.float64)
    with model.counting() as counted:
        out = experts_forward(layer.experts, hidden, index, weights)
    kept = most_active(counts, keep)[1]
    wanted = slow_layer(layer.experts, state.lora, hidden, index, weights, kept, counts[1])
    torch.testing.assert_close(out, wanted, rtol=1e-10, atol=1e-10)
    assert counted[1].tolist() == [int((index == e).sum()) * bool(kept[e]) for e in range(8)]
    assert model.kept.counts[1] == 20 * 4 - counted[1].sum()
    ours, theirs = (torch.autograd.grad((y * probe).sum(), leaves) for y in (out, wanted))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-6, atol=1e-6)
    assert all(grad[~kept].eq(0).all() for grad in ours[2:])


@pytest.mark.parametrize(
    "kind", ["mixtral", "gpt_oss", "llama4_text", "deepseek_v3", "ernie4_5_moe"]
)
def test_merging_is_to_have_the_merged_expert_in_each_place_left_out(family_model, kind):
    """Also with biases, transposed weights, weighed inputs, groups: routers are left alone."""
    model, plain = family_model(kind), family_model(kind)
    ids = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
    valid = torch.arange(10) < torch.tensor([[10], [7], [4]])
    counts = counts_for(model)
    model.kept.keep(counts, MERGE)
    for i, layer in enumerate(plain.layers):
        kept = most_active(counts, 3)[i]
        shares = merging_shares(counts[i], kept).float()
        for name, parameter in layer.experts.named_parameters():
            one = torch.einsum("e,e...->...", shares, parameter)
            parameter.data[~kept] = one
            assert name.startswith(("gate_up_proj", "down_proj"))
        lora = plain.states[i].lora
        for factor in (lora.gate_up_B, lora.down_B):
            factor.data[~kept] = 0
    with model.counting() as counted:
        found = model.hidden(ids, valid)[valid]
    with plain.counting() as all_counts:
        wanted = plain.hidden(ids, valid)[valid]
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)
    kept = most_active(counts, 3)
    assert torch.equal(counted, all_counts * kept)
    assert torch.equal(model.kept.counts, (all_counts * ~kept).sum(1))
    assert (counted.sum(1) + model.kept.counts == valid.sum() * model.top_k).all()


class Barred(TorchFunctionMode):
    """The first logits that a router makes are -inf for the experts left out."""

    def __init__(self, left_out):
        super().__init__()
        self.left_out = left_out

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out.masked_fill(self.left_out, -torch.inf) if func is F.linear else out


@pytest.mark.parametrize(
    "kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in DROPPED]
)
def test_dropping_is_what_the_familys_own_router_makes_of_logits_of_minus_infinity(
    family_model, kind
):
    model = family_model(kind)
    assert drop_fault(model.family, model.layers) is None
    model.kept.keep(counts_for(model), Subset(keep=3))
    hidden = torch.randn(50, 32, generator=torch.Generator().manual_seed(1))
    left_out = [state.left_out for state in model.states]
    for top_k in (1, 3):
        model.set_budget(top_k)
        for layer, state, out in zip(model.layers, model.states, left_out, strict=True):
            state.left_out = out
            found = layer.router(hidden)
            state.left_out = None
            with Barred(out[:-1]):
                wanted = layer.router(hidden)
            dense = [torch.zeros(50, 8).scatter(1, r[2], r[1].float()) for r in (found, wanted)]
            torch.testing.assert_close(*dense, rtol=1e-5, atol=1e-6)
            assert not out[found[2]].any()
            assert found[2].shape == (50, top_k)


def test_families_whose_routers_choose_by_more_than_logits_are_refused_by_name():
    refused = {k: f for k, f in CAUSAL.items() if k not in DROPPED}
    assert {"deepseek_v3", "phimoe", "afmoe", "ernie4_5_moe"} <= set(refused)
    for family in refused.values():
        assert "use left_out: merge" in (drop_fault(family, []) or "")


def test_an_expert_kept_whose_share_underflows_is_still_chosen_before_one_left_out(family_model):
    model = family_model("olmoe")
    model.set_budget(3)
    model.kept.keep(COUNTS, Subset(keep=3))
    layer, state = model.layers[0], model.states[0]
    kept = (~state.left_out[:-1]).nonzero().flatten()
    layer.router.weight.data.zero_()
    layer.router.weight.data[kept[0]] = 100.0
    layer.router.weight.data[kept[1]] = -100.0
    _, weights, index = layer.router(torch.ones(4, 32))
    assert sorted(index[0].tolist()) == kept.tolist()
    assert sorted(weights[0].tolist()) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_merged_expert_takes_the_form_of_the_others(family_model, form):
    model = family_model("olmoe")
    weights = model.layers[0].experts.gate_up_proj.detach().clone()
    model.frozen.hold({form: False})
    model.kept.keep(COUNTS, MERGE)
    merged = model.states[0].merged
    assert isinstance(merged.gate_up, Quantised)
    kept = most_active(COUNTS, 3)[0]
    restored = quantised(weights, form)[0:8]
    mean = torch.einsum("e,e...->...", merging_shares(COUNTS[0], kept).float(), restored)
    assert (merged.gate_up[0] - mean).norm() < (0.01 if form == "int8" else 0.2) * mean.norm()
    ids = torch.randint(2, 64, (2, 6), generator=torch.Generator().manual_seed(0))
    assert model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)).isfinite().all()


def test_narrowed_weights_are_those_of_the_experts_kept():
    weights = torch.randn(6, 4, 64, generator=torch.Generator().manual_seed(0))
    kept = torch.tensor([False, True, False, True, True, False])
    for stored in (Elsewhere(weights.device, weights), quantised(weights, "int8")):
        some = stored.narrowed(kept)
        assert some.num_bytes == stored.num_bytes // 2
        assert some.shape == (6, 4, 64)
        assert all(torch.equal(some[e], stored[e]) for e in (1, 3, 4))
        assert torch.equal(some[0:6][kept], stored[0:6][kept])
        assert some[0:6][~kept].eq(0).all()
        assert torch.equal(some[2:4][1], stored[3])
        assert some[5:6].shape == (1, 4, 64)
        assert torch.equal(some.mT[3], stored[3].mT)


def test_the_path_of_a_gpu_brings_what_is_kept_and_computes_the_same(family_model, monkeypatch):
    """A processor stands for the GPU, and a copy for pinned memory."""
    plain, model = family_model("olmoe"), family_model("olmoe")
    monkeypatch.setattr("fedmoe.models.memory.frozen.pinned", lambda w: w.detach().clone())
    monkeypatch.setattr(model.frozen, "on_gpu", True)
    model.frozen.hold({"full": True})
    ids = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    found = []
    for one in (plain, model):
        one.kept.keep(COUNTS, MERGE)
        found.append(one.hidden(ids, valid))
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    bytes_of = sum(stored.num_bytes for state in model.states for stored in state.stored)
    assert bytes_of == model.frozen.num_bytes("full") * 3 // 8
    model.kept.clear()
    assert all(isinstance(stored, Elsewhere) for state in model.states for stored in state.stored)


def test_a_loss_through_merged_experts_trains_routers_and_kept_experts_alone(random_adapter):
    settings_ = LoRA(rank=4, alpha=8.0, router=True)
    model = AdaptedModel(tiny_family(FAMILIES["olmoe"]), settings_, NoRescaling())
    model.load(random_adapter(model.layout))
    model.kept.keep(COUNTS, MERGE)
    rows = [Tokens(tuple(range(2, 20)), 4), Tokens(tuple(range(30, 40)), 3)]
    response_loss(model, collate(rows, 0)).backward()
    kept = most_active(COUNTS, 3)
    for entry, grad in model.layout.views(model.grad):
        if entry.layer is not None:
            assert grad[~kept[entry.layer]].eq(0).all(), entry.name
        elif entry.kind == "shift":
            assert grad.norm() > 0
