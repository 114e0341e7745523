"""Gatings and losses on routing with the routers of every family that they are for."""

import pytest
import torch
from family_contract import IDS, SETTINGS, error, original
from family_models import tiny_family

from fedmoe.data.text import Tokens, collate
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.families import FAMILIES
from fedmoe.models.gating import HierarchicalGating, Routed
from fedmoe.models.gating.outputs import expert_output
from fedmoe.models.modulation import SOFTMAX
from fedmoe.models.rescaling import NoRescaling
from fedmoe.training.router_losses import RouterLosses, importance, load_balance, router_training

KINDS = [kind for kind in SOFTMAX if FAMILIES[kind].task == "causal"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def batch():
    return collate([Tokens(tuple(row), 1) for row in IDS.tolist()], 0)


def logits_of(model):
    return model.logits(model.hidden(IDS, torch.ones_like(IDS, dtype=torch.bool)))


def test_they_are_for_more_than_those_that_take_a_softmax_of_all_logits():
    rules = {FAMILIES[kind].rule for kind in KINDS}
    assert {"softmax of the chosen", "softmax", "softmax, normalised"} <= rules
    assert {"jamba", "gpt_oss", "granitemoe"} <= set(KINDS)


@every_kind
@torch.no_grad()
def test_all_groups_are_the_familys_own_choice_and_weights(kind):
    """A gating that changes nothing: so its weights are by the router's own rule, for every k."""
    gating = HierarchicalGating(num_groups=2, chosen_groups=2)
    model = AdaptedModel(tiny_family(FAMILIES[kind]), SETTINGS, NoRescaling(), gating)
    plain = AdaptedModel(tiny_family(FAMILIES[kind]), SETTINGS, NoRescaling())
    assert error(logits_of(model), original(kind)(input_ids=IDS).logits) < 1e-6
    for k in (1, 3):
        model.set_budget(k)
        plain.set_budget(k)
        assert error(logits_of(model), logits_of(plain)) < 1e-6


@every_kind
def test_losses_see_the_routers_own_logits_and_experts(kind, random_adapter):
    """Alignment to itself is 0, and what experts answer one by one makes up the layer's answer."""
    settings = LoRA(rank=4, alpha=8.0, router=True)
    model = AdaptedModel(tiny_family(FAMILIES[kind]), settings, NoRescaling())
    model.load(random_adapter(model.layout))
    losses = RouterLosses(alignment=1.0)
    with router_training(model.gates, losses, torch.Generator().manual_seed(0)) as routers:
        routers.begin(0.0)
        model.target_logits(batch())
        seen = routers.seen[0]
        loss = routers.loss(batch().valid)
        rows = {"hidden": seen.hidden, "weights": seen.weights, "index": seen.index}
    assert loss is not None
    assert abs(loss.item()) < 1e-6
    hidden, weights, index = (rows[name].detach() for name in ("hidden", "weights", "index"))
    experts = model.layers[0].experts
    with torch.no_grad():
        one_by_one = sum(
            expert_output(experts, hidden, e) * (weights * (index == e)).sum(1, keepdim=True)
            for e in range(8)
        )
        assert error(one_by_one, experts(hidden, index, weights)) < 1e-5


@pytest.mark.parametrize("loss", [load_balance, importance])
def test_losses_on_even_loads_are_of_the_experts_that_can_be_chosen(loss):
    """A subset that drops the others computes a model that has the few alone."""
    g = torch.Generator().manual_seed(0)
    few = torch.randn(50, 4, generator=g)
    many = torch.full((50, 16), -torch.inf)
    many[:, 3:7] = few
    found = []
    for logits in (few, many):
        best = torch.softmax(logits, -1).topk(2, dim=-1)
        routed = Routed(torch.zeros(50, 8), logits, best.values, best.indices)
        found.append(float(loss(routed)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0] > 1e-4
