"""A router can be trained from the start under any gating, with any loss on routing."""

import json
from typing import get_args

import numpy as np
import pytest
import torch

from fedmoe.models.gating import Gating, NoisyTopKGating, Top1Gating, TopKGating
from fedmoe.pretraining import train
from fedmoe.pretraining.train import ModelShape, Pretrain, Trainer
from fedmoe.training.router_losses import RouterLosses

MEMBERS = get_args(get_args(Gating)[0])
SHAPE = ModelShape(
    hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_experts=8, top_k=2, vocab_size=64
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


def test_without_gating_and_losses_a_step_is_as_ever(trainer_for):
    trainer = trainer_for(gating=TopKGating())
    assert set(trainer._train_step(trainer._batch())) == {"loss", "load_balance", "router_z"}


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


def test_a_recipe_refuses_losses_that_have_no_meaning(trainer_for):
    for losses, said in (
        (RouterLosses(alignment=1.0), "no global router"),
        (RouterLosses(load=1.0), "use gating 'noisy_top_k'"),
    ):
        with pytest.raises(ValueError, match=said):
            trainer_for(losses=losses)
