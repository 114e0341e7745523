"""Laws of a budget inside the model: full budget is the base, counts add up, padding is nothing."""

import pytest
import torch
from family_models import tiny_family
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedmoe.adapter import Adapter, initial_adapter
from fedmoe.data.text import Tokens, collate
from fedmoe.errors import ModelError
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, load_base
from fedmoe.models.decode import greedy
from fedmoe.models.families import FAMILIES as KNOWN
from fedmoe.models.families import moe_layers
from fedmoe.models.rescaling import LearnedRescaling, NoRescaling, StaticRescaling, check_mass
from fedmoe.training.loss import mean_loss, response_loss

FAMILIES = ["olmoe", "mixtral", "qwen3_moe"]
RESCALINGS = [
    NoRescaling(),
    StaticRescaling(),
    StaticRescaling(by="mass"),
    LearnedRescaling(),
    LearnedRescaling(start="ratio"),
]
IDS = torch.randint(2, 64, (3, 10), generator=torch.Generator().manual_seed(0))
ALL = torch.ones_like(IDS, dtype=torch.bool)


@pytest.fixture(scope="module")
def model(tiny_model, random_adapter):
    """A model with a random adapter at full budget; tests set the budget they need."""
    made = tiny_model()
    made.load(random_adapter(made.layout))
    return made


def logits_of(model, ids=IDS):
    return model.logits(model.hidden(ids, torch.ones_like(ids, dtype=torch.bool))).detach()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rescaling", RESCALINGS, ids=repr)
def test_at_full_budget_a_fresh_adapter_is_the_base_model(tiny_base, tiny_model, family, rescaling):
    """Relative error 1e-6 against transformers' eager experts, which sum in another order."""
    model = tiny_model(family, rescaling=rescaling)
    model.load(initial_adapter(model.layout, torch.Generator().manual_seed(0)))
    model.set_budget(model.full_top_k)
    base = tiny_base(family)(input_ids=IDS).logits
    assert (logits_of(model) - base).norm() <= 1e-6 * base.norm()


@pytest.mark.parametrize("rescaling", RESCALINGS, ids=repr)
def test_at_full_budget_no_rescaling_changes_a_bit(tiny_model, random_adapter, rescaling):
    plain, rescaled = tiny_model(), tiny_model(rescaling=rescaling)
    for model in (plain, rescaled):
        model.load(random_adapter(model.layout))
        model.set_budget(4)
    assert torch.equal(logits_of(plain), logits_of(rescaled))


lengths = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@settings(max_examples=25)
@given(lengths, st.integers(1, 4), st.integers(0, 2**31))
def test_counts_sum_to_tokens_times_top_k_in_every_layer(model, lengths, top_k, seed):
    """Padding excluded, and every pass adds."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        Tokens(tuple(torch.randint(2, 64, (n,), generator=generator).tolist()), 1) for n in lengths
    ]
    model.set_budget(top_k)
    with model.counting() as counts:
        for _ in range(2):
            response_loss(model, collate(rows, 0))
    tokens = 2 * sum(n - 1 for n in lengths)
    assert counts.sum(1).tolist() == [tokens * top_k] * 2
    assert counts.max() <= tokens
    response_loss(model, collate(rows, 0))
    assert counts.sum() == 2 * tokens * top_k  # counting ended with its block


def test_counts_are_what_the_routers_chose(model):
    model.set_budget(3)
    chosen = []
    hooks = [
        layer.router.register_forward_hook(lambda _m, _i, out: chosen.append(out[2]))
        for layer in model.layers
    ]
    with model.counting() as counts:
        logits_of(model)
    for hook in hooks:
        hook.remove()
    slow = [[sum(e == j for e in index.flatten().tolist()) for j in range(8)] for index in chosen]
    assert counts.tolist() == slow


@settings(max_examples=15)
@given(lengths, st.integers(1, 4), st.integers(2, 63), st.integers(2, 63))
def test_padding_changes_neither_loss_nor_counts_nor_gradients(model, lengths, top_k, pad, other):
    """The padding's content changes no bit; its length no more than a rounding."""
    rows = [Tokens(tuple(3 + (5 * i + 7 * n) % 61 for i in range(n)), 1) for n in lengths]
    model.set_budget(top_k)
    results = []
    for batches in ([collate(rows, pad)], [collate(rows, other)], [collate([r], 0) for r in rows]):
        model.grad.zero_()
        with model.counting() as counts:
            losses = [response_loss(model, batch) for batch in batches]
            torch.stack(losses).sum().backward()
        results.append((sum(loss.item() for loss in losses), counts, model.grad.clone()))
    model.grad.zero_()
    (loss, counts, grad), again, alone = results
    assert loss == again[0]
    assert torch.equal(grad, again[2])
    assert loss == pytest.approx(alone[0], rel=1e-5)
    assert torch.equal(counts, again[1])
    assert torch.equal(counts, alone[1])
    assert (grad - alone[2]).norm() <= 1e-5 * grad.norm()


def test_the_budget_changes_what_is_computed_and_comes_back(model):
    rows = [Tokens(tuple(row), 3) for row in IDS.tolist()]
    losses = []
    for top_k in (1, 2, 3, 4, 1):
        model.set_budget(top_k)
        losses.append(mean_loss(model, rows, 2, 0))
    assert len(set(losses)) == 4
    assert losses[0] == losses[-1]


def test_a_lower_budget_is_the_base_model_of_that_top_k(tiny_base, tiny_model):
    base, model = tiny_base(num_experts_per_tok=2), tiny_model()
    model.set_budget(2)
    model.load(Adapter(model.layout, torch.zeros(model.layout.size)))
    theirs = base(input_ids=IDS).logits
    assert (logits_of(model) - theirs).norm() <= 1e-6 * theirs.norm()


class Stubborn(nn.Module):
    """A router as Phi-MoE's: it has a `top_k` and never reads it."""

    def __init__(self, router):
        super().__init__()
        self.weight, self.top_k = router.weight, router.top_k

    def forward(self, hidden):
        logits = hidden @ self.weight.T
        weights, index = logits.softmax(-1).topk(4, dim=-1)
        return logits, weights, index


def test_a_router_that_ignores_top_k_is_refused(tiny_base):
    base = tiny_base()
    base.model.layers[1].mlp.gate = Stubborn(base.model.layers[1].mlp.gate)
    model = AdaptedModel(base, LoRA(), NoRescaling())
    model.check_top_ks({4})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate \(Stubborn\) got top_k = 2"):
        model.check_top_ks({4, 2})
    assert [layer.router.top_k for layer in model.layers] == [4, 4]


@pytest.mark.parametrize("flag", ["has_bias", "is_transposed", "has_post_expert_norm"])
def test_experts_the_fast_path_would_compute_wrongly_are_refused(tiny_base, flag):
    base = tiny_base()
    setattr(base.model.layers[0].mlp.experts, flag, True)
    with pytest.raises(ModelError, match=flag):
        moe_layers(base)


def test_experts_with_a_gate_of_their_own_are_refused(tiny_base):
    base = tiny_base()
    experts = base.model.layers[0].mlp.experts
    experts.__class__ = type("Odd", (type(experts),), {"_apply_gate": lambda self, x: x})
    with pytest.raises(ModelError, match="_apply_gate"):
        moe_layers(base)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_mass_keeps_the_k_largest_and_the_sum_of_all_weights(tiny_base, tiny_model, family, top_k):
    model = tiny_model(family, rescaling=StaticRescaling(by="mass"))
    model.set_budget(top_k)
    x = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    for ours, layer in zip(model.layers, tiny_base(family).model.layers, strict=True):
        _, full_weights, full_index = layer.mlp.gate(x)
        _, weights, index = ours.router(x)
        torch.testing.assert_close(weights.sum(-1), full_weights.sum(-1))
        for t in range(20):
            by_weight = sorted(zip(full_weights[t].tolist(), full_index[t].tolist(), strict=True))
            assert {e for _, e in by_weight[-top_k:]} == set(index[t].tolist())
        if top_k == 4:
            assert torch.equal(weights, full_weights)
            assert torch.equal(index, full_index)
    model.check_top_ks({1, 2, 4})
    with pytest.raises(ModelError, match=r"top_k 5 is over the model's 4, whose weights rescaling"):
        model.check_top_ks({1, 5})


@pytest.mark.parametrize("kind", [k for k, family in KNOWN.items() if family.task == "causal"])
def test_mass_changes_no_choice_or_is_refused(kind):
    """Routers with a bias to choose by do not take the largest weights; nor does a sparse mixer."""
    family = KNOWN[kind]
    if family.corrected or family.scores == "sparsemixer":
        with pytest.raises(ModelError, match=r"choose by more than that .*; use 'ratio'"):
            check_mass(family)
        return
    keeping, plain = (
        AdaptedModel(tiny_family(family), LoRA(rank=2), rescaling)
        for rescaling in (StaticRescaling(by="mass"), NoRescaling())
    )
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))
    for k in range(1, plain.full_top_k + 1):
        keeping.set_budget(k)
        plain.set_budget(k)
        for ours, theirs in zip(keeping.layers, plain.layers, strict=True):
            (_, _, index), (_, _, own) = ours.router(x), theirs.router(x)
            assert torch.equal(index.sort(-1).values, own.sort(-1).values)


def test_a_rescaler_multiplies_each_layers_output(tiny_model):
    model = tiny_model(rescaling=StaticRescaling())
    x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0))
    block = model.model.model.layers[1].mlp
    model.set_budget(2, torch.ones(2))
    plain = block(x)
    model.set_budget(2)
    assert model.rescaler.tolist() == [2.0, 2.0]
    assert torch.equal(block(x), 2 * plain)
    model.set_budget(2, torch.tensor([9.0, 0.5]))
    assert torch.equal(block(x), 0.5 * plain)


def test_the_learned_rescalers_gradient_is_the_slope_of_the_loss(tiny_model, random_adapter):
    """Against central differences in each layer's factor, within 1%."""
    model = tiny_model(rescaling=LearnedRescaling())
    model.load(random_adapter(model.layout))
    batch = collate([Tokens(tuple(row), 3) for row in IDS.tolist()], 0)
    model.set_budget(2)
    leaf = model.train_rescaler()
    response_loss(model, batch).backward()
    model.grad.zero_()
    assert leaf.grad is not None
    for layer in range(2):
        ends = []
        for step in (-0.01, 0.01):
            factors = torch.ones(2)
            factors[layer] += step
            model.set_budget(2, factors)
            with torch.no_grad():
                ends.append(response_loss(model, batch).item())
        assert leaf.grad[layer].item() == pytest.approx((ends[1] - ends[0]) / 0.02, rel=1e-2)


@pytest.mark.parametrize("top_k", [1, 4])
def test_greedy_answers_are_the_argmax_of_full_forward_passes(model, top_k):
    """Prompts of unlike lengths in one batch; token 1 ends an answer."""
    model.set_budget(top_k)
    prompts = [row[: 2 + 3 * i] for i, row in enumerate(IDS.tolist())]
    answers = greedy(model.model, prompts, 6, pad=0, end=1)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 6 and 1 not in ids[len(prompt) :]:
            ids.append(int(logits_of(model, torch.tensor([ids]))[0, -1].argmax()))
        padding = [0] * (len(answer) - (len(ids) - len(prompt)))
        assert answer == ids[len(prompt) :] + padding


def test_a_checkpoint_that_lacks_weights_or_is_cut_short_is_refused(tiny_base, tmp_path):
    tokenizer = load_base(ModelSettings())[1]
    for name, change in (("lacks", "missing"), ("cut", "no causal language model")):
        model = tiny_base()
        state = model.state_dict()
        if name == "lacks":
            state.pop("model.norm.weight")
        model.save_pretrained(tmp_path / name, state_dict=state)
        tokenizer.save_pretrained(tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        if name == "cut":
            weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(ModelError, match=change):
            load_base(ModelSettings(path=str(tmp_path / name)))
