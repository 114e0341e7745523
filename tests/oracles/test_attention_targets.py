"""Attention projections by name: the ones that are named get LoRA, as PEFT takes the same list."""

import pytest
import torch
from test_peft import IDS, our_logits

from fedmoe.config import Experiment, load_experiment
from fedmoe.config.load import to_yaml
from fedmoe.errors import ConfigError, ModelError
from fedmoe.export.peft import peft_config, to_peft
from fedmoe.models.adapted import LoRA


def linears_of(model):
    return {path.rpartition(".")[2] for path in model.linears}


def test_named_projections_alone_are_adapted_in_the_models_order(tiny_model):
    every = tiny_model(adapter=LoRA(rank=2))
    some = tiny_model(adapter=LoRA(rank=2, attention=("v_proj", "q_proj")))
    assert linears_of(some) == {"q_proj", "v_proj"}
    kept = [
        e.name for e in every.layout.entries if "k_proj" not in e.name and "o_proj" not in e.name
    ]
    assert [e.name for e in some.layout.entries] == kept
    assert linears_of(tiny_model(adapter=LoRA(attention=False))) == set()
    named = tiny_model(adapter=LoRA(rank=2, attention=("q_proj", "k_proj", "v_proj", "o_proj")))
    assert named.layout == every.layout


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_takes_the_same_list_and_gives_the_same_logits(tiny_model, tiny_base, random_adapter):
    model = tiny_model(adapter=LoRA(rank=2, attention=("q_proj", "v_proj")))
    adapter, base = random_adapter(model.layout), tiny_base()
    model.load(adapter)
    model.set_budget(4)
    config = peft_config(model.layout, model.family, base)
    assert set(config.target_modules or ()) == {"q_proj", "v_proj"}
    theirs = to_peft(adapter, base)(input_ids=IDS).logits
    torch.testing.assert_close(our_logits(model), theirs, rtol=1e-4, atol=1e-5)


def test_an_unknown_name_is_answered_with_those_there_are(tiny_model):
    with pytest.raises(
        ModelError, match=r"called p_proj; there are q_proj, k_proj, v_proj, o_proj"
    ):
        tiny_model(adapter=LoRA(attention=("q_proj", "p_proj")))


def test_a_config_takes_a_list_or_a_switch(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("adapter: {attention: [q_proj, v_proj]}\n")
    made = load_experiment(path)
    assert made.adapter.attention == ("q_proj", "v_proj")
    path.write_text(to_yaml(made))
    assert load_experiment(path) == made
    assert load_experiment(path, ["adapter.attention=false"]).adapter == LoRA(attention=False)
    for bad in ("[]", "5"):
        with pytest.raises(ConfigError, match=r"adapter\.attention"):
            load_experiment(path, [f"adapter.attention={bad}"])
    assert Experiment().adapter.attention is True
