"""`fedmoe pretrain`: what is mistyped is said at once, and a work folder is of one recipe."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import save, tiny_family
from pydantic import TypeAdapter

from fedmoe.base_models.pretraining.recipe import HELD_OUT, Pretrain, check_tokens, claim
from fedmoe.cli.main import main
from fedmoe.errors import FedMoEError
from fedmoe.export.loaded import load_model
from fedmoe.models.build import model_folder
from fedmoe.models.families import FAMILIES
from fedmoe.models.gating import Gating, TopKGating
from fedmoe.models.pretrained_gating import gating_of, unlike_gating

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.yaml")
PLACES = "sources: s\nwork: w\nout: o\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("gating={name: hierarchical, num_groups: 3}", "gating.num_groups 3 does not divide 32"),
        ("model.top_k=33", "top_k 33 is over num_experts, which is 32"),
        ("model.top_k=0", "model.top_k"),
        ("model.hidden_size=36", "no multiple of twice num_attention_heads, 8"),
        ("model.vocab_size=64", "model.vocab_size"),
        ("tokens=10", "tokens 10 make no step; expected 4096"),
        ("batch_size=1", "batch_size 1 is below workers, 2"),
        ("block=1000", "block"),
        ("warmup_steps=0", "warmup_steps"),
        ("losses.alignment=1", "no global router"),
        ("losses.lod=1", "did you mean losses.load"),
    ],
)
def test_a_recipe_that_cannot_be_is_explained(tmp_path, capsys, monkeypatch, override, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PLACES)
    assert main(["pretrain", "p.yaml", override]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "w").exists()


def test_a_work_folder_is_of_one_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PLACES)
    first = Pretrain(sources="s", work="w", out="o")
    claim(Pretrain(sources="s", work="w", out="o", seed=1))  # of which nothing came
    claim(first)
    (tmp_path / "w/tokens.npy").touch()
    claim(first)
    claim(Pretrain(sources="elsewhere", work="w", out="o2", tokens=10**6, decay_share=0.5))
    assert main(["pretrain", "p.yaml", "gating.name=top_1", "seed=7", "losses.z=.5"]) == 2
    error = capsys.readouterr().err
    assert "w holds work on another recipe (seed, gating, losses)" in error
    assert "delete it to begin anew" in error
    claim(first)  # what was refused has changed nothing


def test_a_work_folder_of_which_nothing_is_known_is_not_taken_up(tmp_path):
    recipe = Pretrain(sources="s", work=str(tmp_path), out="o")
    (tmp_path / "checkpoint.safetensors").touch()
    with pytest.raises(FedMoEError, match="another recipe"):
        claim(recipe)
    for damaged in ('{"seed": ', "[]"):
        (tmp_path / "recipe.json").write_text(damaged)
        with pytest.raises(FedMoEError, match="is no recipe"):
            claim(recipe)


def test_a_pretrained_model_says_how_it_chooses(tmp_path):
    path = tmp_path / "pretraining.json"
    assert gating_of(tmp_path).name == "top_k"
    for said, expected in (
        ({}, "top_k"),
        ({"gating": {"name": "top_1"}}, "top_1"),
        ({"gating": {"name": "hierarchical", "num_groups": 2}}, "hierarchical"),
        ({"gating": {"name": "expert_choice"}}, "top_k"),  # not outside training
    ):
        path.write_text(json.dumps({"recipe": said}))
        assert gating_of(tmp_path).name == expected
    for damaged in ("{", "[]", '{"recipe": {"gating": {"name": "top_9"}}}', '{"recipe": 3}'):
        path.write_text(damaged)
        with pytest.raises(FedMoEError, match="does not say how its model chooses"):
            gating_of(tmp_path)


def test_another_gating_than_in_pretraining_is_said(tmp_path):
    def said(gating):
        return unlike_gating(TypeAdapter(Gating).validate_json(json.dumps(gating)), tmp_path)

    assert said({"name": "top_1"}) is None  # nothing is known of the model
    groups = {"name": "hierarchical", "num_groups": 2}
    (tmp_path / "pretraining.json").write_text(json.dumps({"recipe": {"gating": groups}}))
    assert said(groups) is None
    for other in ({"name": "top_k"}, {"name": "noisy_top_k"}, {**groups, "num_groups": 4}):
        assert '"num_groups":2' in (said(other) or "")
    (tmp_path / "pretraining.json").write_text('{"recipe": {"gating": {"name": "noisy_top_k"}}}')
    assert said({"name": "top_k"}) is None  # there is no noise in answers
    (tmp_path / "pretraining.json").write_text('{"steps": 5}')  # of another program
    assert "does not say how its model chooses" in (said({"name": "top_k"}) or "")
    assert unlike_gating(TopKGating(), tmp_path / "pretraining.json") is None  # a file's name


def test_a_run_and_its_check_warn_of_another_gating(tmp_path, capsys):
    model = shutil.copytree(model_folder("mini"), tmp_path / "model")
    about = json.loads((model / "pretraining.json").read_text())
    about["recipe"]["gating"] = {"name": "top_1"}
    (model / "pretraining.json").write_text(json.dumps(about))
    settings = [
        f"model.path={model}",
        f"simulation.folder={tmp_path}",
        "rounds=1",
        "data.per_domain=20",
        "clients_per_round=1",
        "training.steps=1",
        "training.batch_size=2",
        "training.probe_examples=2",
        "evaluation.every=0",
        "evaluation.test_examples=2",
        "evaluation.max_new_tokens=1",
    ]
    assert main(["check", QUICKSTART, *settings]) == 0
    assert 'pretrained under the gating {"name":"top_1"}' in capsys.readouterr().out
    assert main(["run", QUICKSTART, *settings, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"fedmoe: warning: {model} was pretrained under")
    assert [json.loads(line) for line in shown.out.splitlines()]


def test_answers_are_chosen_as_the_model_was_pretrained(tmp_path):
    folder = save(tiny_family(FAMILIES["olmoe"], vocab_size=4096), tmp_path / "model")
    assert load_model(str(folder)).model.gates.gating.name == "top_k"
    (folder / "pretraining.json").write_text('{"recipe": {"gating": {"name": "top_1"}}}')
    loaded = load_model(str(folder))
    assert loaded.use("base", 2) == 2
    model = loaded.model
    ids = torch.arange(2, 22).view(1, 20)
    with model.counting() as counts, torch.no_grad():
        model.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    assert counts.sum(1).tolist() == [20] * len(model.layers)


def test_too_little_text_is_said_before_training(tmp_path):
    recipe = Pretrain(sources="s", work=str(tmp_path), out="o", block=16, batch_size=8)
    least = (HELD_OUT + 8 + 3) * 16
    np.save(tmp_path / "tokens.npy", np.zeros(least, np.uint16))
    check_tokens(recipe)
    np.save(tmp_path / "tokens.npy", np.zeros(least - 1, np.uint16))
    with pytest.raises(FedMoEError, match=f"{least - 1} tokens; expected {least} or more"):
        check_tokens(recipe)
