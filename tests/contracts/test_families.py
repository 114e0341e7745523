"""One contract for every family of sparse MoE models, on tiny random models of transformers."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from family_models import on_interface, save, tiny_family
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from fedmoe.adapter import Adapter, initial_adapter
from fedmoe.data.text import Tokens, collate
from fedmoe.errors import ModelError
from fedmoe.models.adapted import AdaptedModel, AdapterSettings
from fedmoe.models.build import ModelSettings
from fedmoe.models.decode import greedy
from fedmoe.models.families import (
    FAMILIES,
    REFUSED,
    check_family,
    install,
    moe_layers,
    set_top_k,
)
from fedmoe.models.families.parameters import parameters_of
from fedmoe.models.modulation import SOFTMAX, modulate
from fedmoe.models.peft_export import _target, export, to_peft
from fedmoe.models.rescaling import NoRescaling
from fedmoe.training.client import response_loss

# PEFT 0.21.2 reads a property that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = list(FAMILIES)
EXPORTED_BY_DEFAULT = ["gpt_oss", "llama4_text"]
"""Transposed, with and without PEFT's knowledge; others are exported with `slow`."""
EXPORTED = [kind for kind in KINDS if not FAMILIES[kind].no_peft]
SETTINGS = AdapterSettings(rank=4, alpha=8.0)
IDS = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
every_family = pytest.mark.parametrize("kind", KINDS)


def slow_but(first, kinds):
    """`kinds`, of which all but `first` are slow."""
    return [k if k in first else pytest.param(k, marks=pytest.mark.slow) for k in kinds]


@cache
def original(kind):
    """transformers' own model; tests leave it as they found it."""
    return tiny_family(FAMILIES[kind])


@cache
def adapted(kind):
    """Ours; tests set the adapter and the budget they need."""
    return AdaptedModel(tiny_family(FAMILIES[kind]), SETTINGS, NoRescaling())


def fresh(kind):
    """Ours with an adapter that changes nothing, at full budget."""
    model = adapted(kind)
    model.load(initial_adapter(model.layout, torch.Generator().manual_seed(0)))
    model.set_budget(model.full_top_k)
    return model


def trained(kind, random_adapter):
    """Ours with a random adapter, at full budget."""
    model = adapted(kind)
    model.load(random_adapter(model.layout))
    model.set_budget(model.full_top_k)
    return model


def logits_of(model, ids=IDS):
    return model.logits(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))


def error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@every_family
@torch.no_grad()
def test_without_an_adapter_at_full_budget_it_is_the_original(kind):
    """On our experts within 1e-6, as sums are in another order; on transformers' own to the bit."""
    model, theirs = fresh(kind), original(kind)(input_ids=IDS).logits
    assert error(logits_of(model), theirs) < 1e-6
    if on_interface(FAMILIES[kind]):
        model.model.set_experts_implementation("eager")
        ours = logits_of(model)
        FAMILIES[kind].install(model.model)
        assert torch.equal(ours, theirs)


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
    assert error(logits_of(model), theirs) < 1e-6


def factor_gradients(kind, wrapped):
    """PEFT's gradients of every factor by our names, in our shapes."""
    for path, layer in wrapped.get_base_model().named_modules():
        if isinstance(layer, LoraLayer) and layer.lora_A:
            a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
            if getattr(layer, "parameter_name", None):
                e = layer.num_experts
                a, b = a.view(e, -1, a.shape[-1]), b.view(b.shape[0], -1, e).permute(2, 0, 1)
                if kind == "llama4_text":  # PEFT takes its weights for (experts, out, in)
                    a, b = b.mT, a.mT
            yield from zip((f"{_target(path, layer)}.{x}" for x in "AB"), (a, b), strict=True)


@pytest.mark.parametrize("kind", EXPORTED)
def test_logits_and_every_gradient_match_pefts_and_no_other_weight_has_one(kind, random_adapter):
    """Relative errors below 1e-5; then merged by PEFT, within 1e-5 too."""
    model = trained(kind, random_adapter)
    wrapped = to_peft(model.read(), tiny_family(FAMILIES[kind]))
    ours, theirs = logits_of(model), wrapped(input_ids=IDS).logits
    assert error(ours, theirs) < 1e-5
    model.grad.zero_()
    for logits in (ours, theirs):
        logits.log_softmax(-1)[..., 7].sum().backward()
    grads = {entry.name: view for entry, view in model.layout.views(model.grad.clone())}
    for name, theirs_ in factor_gradients(kind, wrapped):
        # What sums from many unlike terms to nearly nothing is held to the scale of all gradients.
        mine = grads.pop(name)
        assert (mine - theirs_).norm() <= 1e-5 * theirs_.norm() + 1e-7 * model.grad.norm(), name
    assert not grads
    leaves = {entry.name for entry in model.layout.entries}
    reached = [n for n, p in model.model.named_parameters() if p.grad is not None]
    assert all(name in leaves for name in reached), reached
    with torch.no_grad():
        merged = wrapped.merge_and_unload()(input_ids=IDS).logits
    assert error(ours.detach(), merged) < 1e-5


@every_family
def test_every_factor_is_reached_and_an_expert_without_tokens_is_not(kind, random_adapter):
    model = trained(kind, random_adapter)
    model.set_budget(1)
    model.grad.zero_()
    few = IDS[:1, :4]
    with model.counting() as counts:
        logits_of(model, few).log_softmax(-1)[..., 7].sum().backward()
    assert (counts == 0).any()
    for entry, grad in model.layout.views(model.grad):
        assert grad.ne(0).any(), entry.name
        if entry.layer is not None:
            touched = grad.flatten(1).ne(0).any(1)
            assert torch.equal(touched, counts[entry.layer] > 0), entry.name


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


@pytest.mark.parametrize("kind", slow_but(EXPORTED_BY_DEFAULT, EXPORTED))
def test_an_export_is_loaded_and_merged_by_peft(kind, random_adapter, tmp_path):
    from transformers import AutoModelForCausalLM

    base = tiny_family(FAMILIES[kind], vocab_size=4096)
    settings = ModelSettings(path=str(save(base, tmp_path / "base")))
    model = AdaptedModel(base, SETTINGS, NoRescaling())
    adapter = random_adapter(model.layout)
    assert export(adapter, model, settings, tmp_path / "adapter") < 1e-4
    reloaded = AutoModelForCausalLM.from_pretrained(settings.path)
    without = reloaded(input_ids=IDS).logits
    merged = PeftModel.from_pretrained(reloaded, str(tmp_path / "adapter")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=IDS).logits
    model.set_budget(model.full_top_k)
    assert error(logits_of(model), theirs) < 1e-5
    assert error(without, theirs) > 1e-2  # else nothing was merged and nothing is shown


def test_dbrx_is_the_original_with_its_adapter_merged_and_refuses_an_export(
    random_adapter, tmp_path
):
    model, base = trained("dbrx", random_adapter), tiny_family(FAMILIES["dbrx"])
    views = model.read().views()

    def delta(name):
        return model.layout.scale * views[f"{name}.B"] @ views[f"{name}.A"]

    for i, block in enumerate(base.transformer.blocks):
        path, mlp = f"transformer.blocks.{i}", block.ffn.experts.mlp
        gate, up = delta(f"{path}.ffn.experts.gate_up_proj").chunk(2, dim=1)
        mlp.w1 += gate.flatten(0, 1)
        mlp.v1 += up.flatten(0, 1)
        mlp.w2 += delta(f"{path}.ffn.experts.down_proj").mT.flatten(0, 1)
        for name in ("Wqkv", "out_proj"):
            linear = getattr(block.norm_attn_norm.attn, name)
            linear.weight += delta(f"{path}.norm_attn_norm.attn.{name}")
    assert error(logits_of(model), base(input_ids=IDS).logits) < 1e-5
    with pytest.raises(ModelError, match="DBRX keeps all experts in one two-dimensional matrix"):
        export(model.read(), model, ModelSettings(), tmp_path / "out")


def test_phimoes_single_expert_is_what_sparsemixer_picks_first():
    """Against its formula for one expert, a softmax over the logits near the largest."""
    layer, x = fresh("phimoe").layers[0], torch.randn(20, 32)
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


@every_family
def test_the_familys_file_says_how_its_router_weighs(kind):
    """Names, shared experts, corrections and groups by what is there, weights by their sums."""
    family = replace(FAMILIES[kind])
    model = adapted(kind)
    model.set_budget(model.full_top_k)
    for layer in model.layers:
        path, _, router = layer.router_path.rpartition(".")
        assert (path.rpartition(".")[2], router) == (family.block, family.router)
    around = [name for name, _ in original(kind).named_modules() if "shared" in name]
    assert bool(around) == family.shared
    names = [n for n, _ in [*original(kind).named_buffers(), *original(kind).named_parameters()]]
    corrections = [n for n in names if "correction_bias" in n or n.endswith("expert_bias")]
    assert bool(corrections) == family.corrected
    assert family.groups == (int(getattr(original(kind).config, "n_group", 1) or 1) > 1)
    outputs = []
    hook = model.layers[0].router.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    model.layers[0].block(torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0)))
    hook.remove()
    sums = outputs[0][1].float().sum(-1)
    normalised = family.normalised == "always" or "chosen" in family.scores
    if family.normalised == "config":
        normalised = bool(model.layers[0].router.norm_topk_prob)
    factor = float(getattr(original(kind).config, family.scaled)) if family.scaled else 1.0
    assert torch.allclose(sums, torch.full_like(sums, factor), atol=1e-4) == normalised


@pytest.mark.parametrize("kind", SOFTMAX)
def test_an_unmodulated_softmax_router_stays_as_it_is_to_the_bit(kind):
    base = tiny_family(FAMILIES[kind])
    install(base)
    layer, x = moe_layers(base)[0], torch.randn(20, 32)
    before = layer.router(x)
    modulate(layer.router, kind, layer.top_k).phi = torch.zeros(8)
    assert all(torch.equal(a, b) for a, b in zip(before, layer.router(x), strict=True))


def test_trained_routers_of_every_kind_get_a_shift():
    """A router's weights may be those of a linear layer inside it."""
    for kind in ("mixtral", "hunyuan_v1_moe", "phimoe"):
        settings = replace(SETTINGS, router=True)
        model = AdaptedModel(tiny_family(FAMILIES[kind]), settings, NoRescaling())
        plain = logits_of(model).detach()
        flat = torch.zeros(model.layout.size)
        changed = Adapter(model.layout, flat)
        for entry, view in model.layout.views(flat):
            if entry.kind == "shift":
                view.normal_(generator=torch.Generator().manual_seed(1))
        model.load(changed)
        assert error(logits_of(model).detach(), plain) > 1e-3, kind


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


@every_family
def test_parameters_per_k_are_those_of_its_tensors(kind):
    """One by one: all, without those of experts that k leaves out."""
    base, counted = original(kind), parameters_of(adapted_base(kind), FAMILIES[kind])
    assert counted.total == sum(p.numel() for p in base.parameters())
    of_experts = sum(p.numel() for n, p in base.named_parameters() if ".experts." in n)
    for k in range(1, counted.top_k + 1):
        assert counted.active(k) == counted.total - of_experts * (8 - k) // 8


@cache
def adapted_base(kind):
    base = tiny_family(FAMILIES[kind])
    FAMILIES[kind].install(base)
    return base


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_what_cannot_be_trained_says_why(refused):
    assert len(refused.reason) > 40
    assert not refused.closest or refused.closest in FAMILIES
    assert refused.model_type not in FAMILIES
    if refused.model_type:
        with pytest.raises(ModelError, match=f"{refused.name}.*cannot be trained here"):
            check_family(refused.model_type)


def test_a_refused_family_is_refused_before_it_is_loaded(tmp_path):
    from transformers import AutoConfig

    from fedmoe.models.build import build_model
    from fedmoe.models.meta import meta_model

    AutoConfig.for_model("switch_transformers").save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    for refuse in (
        lambda: build_model(settings, SETTINGS, NoRescaling()),
        lambda: meta_model(settings, SETTINGS),
    ):
        with pytest.raises(ModelError, match="capacity per expert"):
            refuse()


def test_attention_of_another_name_is_refused_rather_than_left_out():
    base = tiny_family(FAMILIES["mixtral"])
    for layer in base.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, f"{name}_", layer.self_attn._modules.pop(name))
    with pytest.raises(ModelError, match="no linear layer is called q_proj"):
        AdaptedModel(base, SETTINGS, NoRescaling())


def test_layers_with_unlike_budgets_are_refused():
    base = tiny_family(FAMILIES["mixtral"])
    base.model.layers[1].mlp.gate.top_k = 2
    with pytest.raises(ModelError, match=r"unlike \(experts, top_k\) \[\(8, 2\), \(8, 4\)\]"):
        moe_layers(base)


def test_an_unlisted_family_that_scales_its_logits_is_refused():
    model = AdaptedModel(tiny_family(FAMILIES["granitemoe"]), SETTINGS, NoRescaling())
    model.family = replace(model.family, listed=False)
    model.check_top_ks({4})
    model.family = replace(model.family, scale_logits=None)
    with pytest.raises(ModelError, match="change their logits behind the output head"):
        model.check_top_ks({4})
