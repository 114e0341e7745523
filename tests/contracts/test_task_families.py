"""The contract of families that are no causal language models, on tiny random models."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from exports import export
from family_contract import ROUNDING, SETTINGS, error, random_rows
from family_models import save, tiny_family
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer

from fedmoe.adapter import initial_adapter
from fedmoe.data.text import Tokens, collate
from fedmoe.errors import ModelError
from fedmoe.export.peft import to_peft
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.build import ModelSettings
from fedmoe.models.decode import greedy
from fedmoe.models.families import FAMILIES
from fedmoe.models.families.parameters import parameters_of
from fedmoe.models.families.ungated import UngatedBlock, each_linear
from fedmoe.models.memory.subset import drop_fault
from fedmoe.models.rescaling import NoRescaling
from fedmoe.models.tasks import TASKS
from fedmoe.training.loss import response_loss, row_losses

# PEFT 0.21.2 reads a property that transformers 5.23 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

KINDS = [kind for kind, family in FAMILIES.items() if family.task != "causal"]
EXPORTED = [kind for kind in KINDS if not FAMILIES[kind].no_peft]
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True)
def _nllb_as_it_was_trained(monkeypatch):
    """transformers 5.23's NLLB-MoE sends all tokens to experts 0 and 1: put version 4's loop there.

    A token meets the experts for which its router's combined probabilities are above zero.
    """
    from transformers.models.nllb_moe import modeling_nllb_moe

    def forward(self, hidden, _mask, probabilities):
        out = torch.zeros_like(hidden)
        for e in range(self.num_experts):
            tokens = probabilities[:, e].nonzero().flatten()
            weights = probabilities[tokens, e].unsqueeze(1) * (1 - self.moe_token_dropout)
            out.index_add_(0, tokens, self[f"expert_{e}"](hidden[tokens]) * weights)
        return out

    monkeypatch.setattr(modeling_nllb_moe.NllbMoeExperts, "forward", forward)


@cache
def original(kind):
    return tiny_family(FAMILIES[kind])


@cache
def adapted(kind):
    return AdaptedModel(tiny_family(FAMILIES[kind]), SETTINGS, NoRescaling())


def fresh(kind, top_k=None):
    """Ours with an adapter that changes nothing."""
    model = adapted(kind)
    model.load(initial_adapter(model.layout, torch.Generator().manual_seed(0)))
    model.set_budget(top_k or model.full_top_k)
    return model


def trained(kind, random_adapter):
    """Ours with a random adapter, at full budget."""
    model = adapted(kind)
    model.load(random_adapter(model.layout))
    model.set_budget(model.full_top_k)
    return model


def rows_of():
    """Three rows of unlike lengths."""
    sizes = ((9, 3), (4, 2), (12, 7))
    return [Tokens(tuple(3 + (5 * i + 7 * n) % 61 for i in range(n)), p) for n, p in sizes]


def alone(kind, model):
    """The class's own logits, one row at a time: no padding, no batch."""
    form = TASKS[FAMILIES[kind].task]
    return torch.cat([form.own_logits(model, collate([row], 0)) for row in rows_of()])


@every_kind
@torch.no_grad()
def test_without_an_adapter_at_full_budget_it_is_the_original_row_by_row(kind):
    """But for rounding: so no row's padding and no other row of the batch has a say."""
    ours = fresh(kind).target_logits(collate(rows_of(), 0))
    assert error(ours, alone(kind, original(kind))) < ROUNDING


@torch.no_grad()
def test_transformers_own_encoder_decoders_are_asked_as_their_makers_do():
    """`own_logits` of a row are those of the class's `labels`, which it shifts by itself."""
    for kind in ("switch_transformers", "nllb-moe"):
        model, row = original(kind), rows_of()[0]
        labels = torch.tensor([row.ids[row.prompt_length :]])
        loss = model(input_ids=torch.tensor([row.prompt]), labels=labels).loss
        ours = response_loss(fresh(kind), collate([row], 0)) / labels.numel()
        assert ours.item() == pytest.approx(loss.item(), rel=1e-5)


@every_kind
@torch.no_grad()
def test_every_k_is_computed_and_counted_exactly(kind, random_adapter):
    model, batch = trained(kind, random_adapter), collate(rows_of(), 0)
    results, full = {}, model.full_top_k
    model.check_top_ks(set(range(1, full + 1)))
    for k in range(1, full + 1):
        model.set_budget(k)
        chosen = []
        hooks = [
            layer.router.register_forward_hook(lambda _m, _i, out, to=chosen: to.append(out[2]))
            for layer in model.layers
        ]
        with model.counting() as counts:
            results[k] = model.target_logits(batch)
        for hook in hooks:
            hook.remove()
        valid = model.routed(batch)
        slow = [
            [sum(e == j for e in i[v].flatten().tolist()) for j in range(8)]
            for i, v in zip(chosen, valid, strict=True)
        ]
        assert counts.tolist() == slow
        assert counts.sum(1).tolist() == [k * int(v.sum()) for v in valid]
    if full > 1:
        assert error(results[1], results[full]) > 1e-3
    stacks = {stack: int(v.sum()) for stack, v in zip(model.stacks, valid, strict=True)}
    assert model.num_tokens(batch) == sum(stacks.values())


def test_an_expert_of_a_switch_takes_the_first_tokens_of_a_sequence_alone(random_adapter):
    family = FAMILIES["switch_transformers"]
    base, roomy = (tiny_family(family, expert_capacity=n) for n in (1, 64))
    model = AdaptedModel(tiny_family(family, expert_capacity=1), SETTINGS, NoRescaling())
    batch = collate(rows_of(), 0)
    with model.counting() as counts, torch.no_grad():
        ours, theirs = model.target_logits(batch), alone(family.model_type, base)
    assert error(ours, theirs) < 1e-6
    assert error(theirs, alone(family.model_type, roomy)) > 1e-3
    assert 1 < counts.max() <= 3  # at most one of each row
    assert (counts.sum(1) < torch.tensor([v.sum() for v in model.routed(batch)])).all()
    assert "choose by more than their logits" in (drop_fault(family, model.layers) or "")
    model.load(random_adapter(model.layout))
    wrapped = to_peft(model.read(), base)
    assert error(model.target_logits(batch), model.form.own_logits(wrapped, batch)) < 1e-5


@pytest.mark.parametrize("kind", ["switch_transformers", "nllb-moe"])
def test_an_encoder_meets_prompts_and_a_decoder_responses(kind):
    model, rows = adapted(kind), rows_of()
    prompts = sum(row.prompt_length for row in rows)
    responses = sum(len(row.ids) - row.prompt_length for row in rows)
    tokens = [int(valid.sum()) for valid in model.routed(collate(rows, 0))]
    assert tokens == [responses if "decoder" in x.path else prompts for x in model.layers]
    assert set(tokens) == {prompts, responses}


@every_kind
def test_no_other_weight_has_a_gradient_and_an_expert_without_tokens_has_none(kind, random_adapter):
    model = trained(kind, random_adapter)
    model.set_budget(1)
    model.grad.zero_()
    few = collate(rows_of()[1:2], 0)
    with model.counting() as counts:
        response_loss(model, few).backward()
    assert (counts == 0).any()
    for entry, grad in model.layout.views(model.grad):
        assert grad.ne(0).any(), entry.name
        if entry.layer is not None:
            touched, used = grad.flatten(1).ne(0).any(1), counts[entry.layer] > 0
            assert torch.equal(touched, used), entry.name
    leaves = {entry.name for entry in model.layout.entries}
    assert {n for n, p in model.model.named_parameters() if p.grad is not None} <= leaves


@every_kind
def test_padding_changes_no_bit_and_other_rows_no_loss(kind, random_adapter):
    model, rows, results = trained(kind, random_adapter), rows_of(), []
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
    each = [response_loss(model, collate([row], 0)).item() for row in rows]
    assert loss == pytest.approx(sum(each), rel=1e-5)
    means = [x / (len(row.ids) - row.prompt_length) for x, row in zip(each, rows, strict=True)]
    assert row_losses(model, rows, 2, 0) == pytest.approx(means, rel=1e-5)


def gradient(weight):
    """Zero for an expert that had no token."""
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


@pytest.mark.parametrize("kind", EXPORTED)
def test_logits_and_every_gradient_match_pefts(kind, random_adapter):
    """Relative errors below 1e-5; then merged by PEFT, within 1e-5 too."""
    model, batch = trained(kind, random_adapter), collate(rows_of(), 0)
    wrapped = to_peft(model.read(), tiny_family(FAMILIES[kind]))
    ours, theirs = model.target_logits(batch), model.form.own_logits(wrapped, batch)
    assert error(ours, theirs) < 1e-5
    model.grad.zero_()
    for logits in (ours, theirs):
        logits.log_softmax(-1)[..., 7].sum().backward()
    found = {
        f"{path}.{x}": gradient(getattr(layer, f"lora_{x}")["default"].weight)
        for path, layer in wrapped.get_base_model().named_modules()
        if isinstance(layer, LoraLayer)
        for x in "AB"
    }
    for entry, mine in model.layout.views(model.grad):
        names = [entry.name]
        if entry.layer is not None:
            paths = each_linear(entry.name.rpartition(".")[0], original(kind), FAMILIES[kind])
            names = [f"{path}.{entry.kind}" for path in paths]
        grads = [found.pop(name) for name in names]
        stacked = torch.stack(grads) if entry.layer is not None else grads[0]
        assert (mine - stacked).norm() <= 1e-5 * stacked.norm() + 1e-7 * model.grad.norm(), names
    assert not found
    with torch.no_grad():
        merged = model.form.own_logits(wrapped.merge_and_unload(), batch)
    assert error(ours.detach(), merged) < 1e-5


@pytest.mark.parametrize("kind", EXPORTED)
def test_an_export_is_loaded_merged_and_saved_again(kind, random_adapter, tmp_path):
    from transformers import AutoConfig

    base, form = tiny_family(FAMILIES[kind], vocab_size=4096), TASKS[FAMILIES[kind].task]
    settings = ModelSettings(path=str(save(base, tmp_path / "base")))
    model, batch = AdaptedModel(base, SETTINGS, NoRescaling()), collate(rows_of(), 0)
    adapter = random_adapter(model.layout)
    assert export(adapter, model, settings, tmp_path / "adapter") < 1e-4

    def loaded(folder):
        config = AutoConfig.from_pretrained(folder)
        return form.load(str(folder), config, torch.float32)[0].eval()

    reloaded = loaded(tmp_path / "base")
    without = form.own_logits(reloaded, batch)
    merged = PeftModel.from_pretrained(reloaded, str(tmp_path / "adapter")).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    theirs = form.own_logits(loaded(tmp_path / "merged"), batch)
    assert error(model.target_logits(batch), theirs) < 1e-5
    assert error(without, theirs) > 1e-2  # else nothing was merged and nothing is shown


@pytest.mark.parametrize("kind", EXPORTED)
@torch.no_grad()
def test_trained_routers_go_to_peft(kind, random_adapter):
    settings = replace(SETTINGS, router=True)
    model = AdaptedModel(tiny_family(FAMILIES[kind]), settings, NoRescaling())
    adapter, batch = random_adapter(model.layout), collate(rows_of(), 0)
    model.load(adapter)
    ours = model.target_logits(batch)
    theirs = model.form.own_logits(to_peft(adapter, tiny_family(FAMILIES[kind])), batch)
    assert error(ours, theirs) < 1e-5


def test_nllb_refuses_an_export_as_transformers_serves_another_model(tmp_path, random_adapter):
    model = trained("nllb-moe", random_adapter)
    with pytest.raises(ModelError, match="to its experts 0 and 1"):
        export(model.read(), model, ModelSettings(), tmp_path / "out")


@every_kind
def test_answers_in_a_batch_are_the_answers_alone_and_the_likeliest(kind, random_adapter):
    model, rows = trained(kind, random_adapter), rows_of()
    prompts = [row.prompt for row in rows]
    together = greedy(model.model, prompts, 4, pad=0, end=1)
    for prompt, answer in zip(prompts, together, strict=True):
        (single,) = greedy(model.model, [prompt], 4, pad=0, end=1)
        assert answer[: len(single)] == single
        first = collate([Tokens((*prompt, 5), len(prompt))], 0)
        assert model.target_logits(first).argmax() == answer[0]


@every_kind
def test_parameters_per_k_and_the_routers_rule_are_those_of_the_file(kind):
    family, model, base = FAMILIES[kind], fresh(kind), original(kind)
    installed = tiny_family(family)
    family.install(installed)
    counted = parameters_of(installed, family)
    assert counted.total == sum(p.numel() for p in base.parameters())
    of_experts = sum(p.numel() for n, p in base.named_parameters() if ".experts." in n)
    assert counted.per_expert == of_experts // 8
    for layer in model.layers:
        path, _, router = layer.router_path.rpartition(".")
        assert (path.rpartition(".")[2], router) == (family.block, family.router)
        assert isinstance(layer.block, UngatedBlock)
        _, weights, _ = layer.router(random_rows(40, 32))
        expected = {"switch_transformers": None, "nllb-moe": 0.8}[kind]
        if expected is None:
            assert (weights < 0.999).any()
        else:
            torch.testing.assert_close(weights.sum(1), torch.full((40,), expected))
