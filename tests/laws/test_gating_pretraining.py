"""A router can be trained from the start under any gating, with any loss on routing."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from transformers import OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from fedmoe.base_models.pretraining import train
from fedmoe.base_models.pretraining.card import card
from fedmoe.base_models.pretraining.recipe import ModelShape, Pretrain
from fedmoe.base_models.pretraining.train import Trainer
from fedmoe.models.gating import GATINGS, CompetitionGating, NoisyTopKGating, Top1Gating
from fedmoe.training.router_losses import RouterLosses, RouterTraining

MEMBERS = GATINGS.members
SHAPE = ModelShape(
    hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_experts=8, top_k=2, vocab_size=300
)


@pytest.fixture
def trainer_for(tmp_path, monkeypatch):
    """A function that makes the only worker of a tiny recipe, on random tokens."""
    monkeypatch.setattr(train.dist, "all_reduce", lambda tensor: None)
    rng = np.random.default_rng(0)
    np.save(tmp_path / "tokens.npy", rng.integers(0, 64, 4000).astype(np.uint16))

    def make(**settings):
        places = {"sources": "s", "work": str(tmp_path), "out": "o"}
        recipe = Pretrain(
            **places, model=SHAPE, tokens=1280, block=16, batch_size=8, workers=1, **settings
        )
        with torch.random.fork_rng():
            return Trainer(recipe, 0)

    return make


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_a_step_trains_the_router_and_repeats_to_the_bit(trainer_for, member):
    steps = []
    for _ in range(2):
        trainer = trainer_for(gating=member(), losses=RouterLosses(importance=0.1))
        before = trainer.model.model.layers[0].mlp.gate.weight.detach().clone()
        losses = trainer._train_step(trainer._batch())
        gate = trainer.model.model.layers[0].mlp.gate.weight.detach()
        assert not torch.equal(gate, before)
        assert losses["routing"] > 0
        steps.append((losses, gate.clone()))
    assert steps[0][0] == steps[1][0]
    assert torch.equal(steps[0][1], steps[1][1])


PROPERTIES = {
    "top_k": lambda one: ((one.index < 8).sum(1) == 2).all(),
    "top_1": lambda one: ((one.index < 8).sum(1) == 1).all(),
    "top_p": lambda one: ((one.index < 8).sum(1) == 1).all(),  # any probability is over .01
    "noisy_top_k": lambda one: not torch.equal(one.logits, one.clean),
    "hierarchical": lambda one: all(len(set((row // 4).tolist())) == 1 for row in one.index),
    "expert_choice": lambda one: torch.bincount(one.index[one.index < 8]).unique().numel() == 1,
    "competition": lambda one: one.choice.responses is not None,
}
SPECIAL = {
    "top_p": {"threshold": 0.01},
    "hierarchical": {"num_groups": 2, "chosen_groups": 1},
    "competition": {"first": 1.0},
}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda m: m.__name__)
def test_a_step_chooses_as_the_gating_says(trainer_for, member, monkeypatch):
    name = member().name
    assert set(PROPERTIES) == {m().name for m in MEMBERS}
    gating = member(**SPECIAL.get(name, {}))
    trainer, kept = trainer_for(gating=gating, losses=RouterLosses(z=0.1)), []
    monkeypatch.setattr(RouterTraining, "loss", lambda self, valid: kept.extend(self.seen) or None)
    trainer._losses(trainer._batch())
    assert len(kept) == 2
    assert all(PROPERTIES[name](one) for one in kept), name


def test_the_usual_balance_is_transformers_layer_by_layer(trainer_for):
    trainer = trainer_for()
    batch = trainer._batch()
    ours = trainer._losses(batch)["routing"]
    logits = trainer.model.model(batch[:, :-1], output_router_logits=True).router_logits
    balance = sum(load_balancing_loss_func((x,), 8, 2) for x in logits) / 2
    z = sum(x.logsumexp(-1).square().mean() for x in logits) / 2
    weights = trainer.recipe.losses
    theirs = weights.load_balance / 2 * balance + weights.z * z  # theirs adds up over the k
    torch.testing.assert_close(ours, theirs)


def test_competition_ends_as_routers_learn(trainer_for, monkeypatch, tmp_path):
    gating = CompetitionGating(schedule="learned", first=1.0, last=0.0)
    trainer, shares = trainer_for(gating=gating), []
    ask = CompetitionGating.share
    monkeypatch.setattr(
        CompetitionGating, "share", lambda self, turn: shares.append(ask(self, turn)) or shares[-1]
    )
    trainer._train_step(trainer._batch())
    assert trainer.agreement is not None
    told = trainer.agreement
    trainer.step = 1
    trainer._train_step(trainer._batch())
    assert shares[:2] == [1.0, 1.0]
    assert shares[2:4] == [pytest.approx(1 - told)] * 2
    # A run that goes on from its checkpoint knows it, too.
    monkeypatch.setattr(train.dist, "barrier", lambda: None)
    monkeypatch.setattr(train.dist, "all_gather", lambda all, mine: all[0].copy_(mine))
    trainer._save()
    assert trainer_for(gating=gating).agreement == pytest.approx(trainer.agreement)


def test_noise_is_trained_but_not_saved(trainer_for):
    trainer = trainer_for(gating=NoisyTopKGating())
    trainer._train_step(trainer._batch())
    assert len(trainer.gates.noises) == 2
    assert all(noise.ne(0).any() for noise in trainer.gates.noises)
    assert not any("noise" in name for name in trainer.model.state_dict())


def test_the_load_that_is_logged_is_what_the_gating_chose(trainer_for):
    load = trainer_for(gating=Top1Gating()).validate()["expert_load"]
    assert [round(sum(layer), 6) for layer in load] == [1.0, 1.0]
    single = json.dumps(load)
    assert json.dumps(trainer_for().validate()["expert_load"]) != single


def test_the_loss_at_fewer_experts_is_that_of_a_model_that_chooses_fewer(trainer_for):
    trainer = trainer_for()
    ours = trainer.validate()["loss_by_top_k"]
    assert list(ours) == ["2", "1"]
    assert [layer.top_k for layer in trainer.gates.layers] == [2, 2]  # as before
    held_out = torch.from_numpy(trainer.validation.astype(np.int64))
    for top_k, loss in ours.items():
        config = type(trainer.model.config)(
            **trainer.model.config.to_dict() | {"num_experts_per_tok": int(top_k)}
        )
        other = OlmoeForCausalLM(config).eval()  # with transformers' own experts
        other.load_state_dict(trainer.model.state_dict())
        inputs = held_out[:-1].view(-1, 16)
        with torch.no_grad():
            plain = other(inputs, labels=inputs).loss
        torch.testing.assert_close(torch.tensor(loss), plain)
    assert ours["1"] != ours["2"]


@pytest.mark.parametrize(("top_k", "expected"), [(8, [8, 4, 2, 1]), (6, [6, 3, 1]), (1, [1])])
def test_k_is_halved_down_to_one(top_k, expected):
    assert train.halves(top_k) == expected


FACTS = {
    "parameters": 1,
    "tokens_seen": 1,
    "seconds": 1,
    "sources": {
        "exercises": {"documents": 2, "bytes": 5, "tokens": 75, "conversation_tokens": 20},
        "wordnet": {"documents": 1, "bytes": 5, "tokens": 25, "conversation_tokens": 0},
    },
    "validation_loss": 1.0,
    "loss_by_top_k": {"2": 1.0, "1": 1.375},
    "expert_load": [[0.5, 0.5]],
}


def test_the_card_says_what_fewer_experts_cost_and_how_much_is_conversation(trainer_for):
    text = card(FACTS | {"recipe": asdict(trainer_for().recipe)}, [])
    assert "| 2 | 1.000 | +0.000 |\n| 1 | 1.375 | +0.375 |" in text
    assert "\n20 % of the tokens are conversations" in text


def test_the_card_names_gating_and_losses(trainer_for):
    usual, other = (
        card(FACTS | {"recipe": asdict(trainer_for(**given).recipe)}, [])
        for given in ({}, {"gating": Top1Gating(), "losses": RouterLosses()})
    )
    assert "loss with losses on routing (load_balance 0.04, z 0.001)." in usual
    assert "next-token loss, under the gating `top_1`" in other


def test_a_recipe_refuses_losses_that_have_no_meaning(trainer_for):
    for losses, said in (
        (RouterLosses(alignment=1.0), "no global router"),
        (RouterLosses(load=1.0), "use gating 'noisy_top_k'"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer_for(losses=losses)
