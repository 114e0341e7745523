"""Answers with experts in 8 or 4 bits, as in training, or in a mapped file, as in memory."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedmoe.cli.main import main
from fedmoe.errors import ModelError
from fedmoe.export.loaded import BASE, load_model, load_run
from fedmoe.export.saved import SavedRun
from fedmoe.models.memory import offload, paging
from fedmoe.models.memory.frozen import weights_of
from fedmoe.models.memory.offload import give_up, is_mapped, mapped
from fedmoe.models.memory.paging import LayerPages, linked
from fedmoe.runs.prepare import prepare

TIERS = {"full": {}, "low": {"frozen": "int8"}, "lowest": {"frozen": "int4", "offload": True}}
IDS = torch.randint(2, 64, (1, 24), generator=torch.Generator().manual_seed(0))


def base(folder, **how):
    loaded = load_model(str(folder), **how)
    loaded.use(BASE)
    return loaded


def at(run, tier, *how):
    loaded = load_run(run, "last", [tier], *how)
    loaded.use(tier)
    return loaded.model


def decoded(loaded, new=8):
    """The logits of the prompt's last token and of each new one."""
    model = loaded.model.model
    with torch.no_grad():
        out = model.generate(
            IDS,
            attention_mask=torch.ones_like(IDS),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return torch.stack(out.logits)


@pytest.fixture(scope="module")
def small(tiny_folder, tmp_path_factory):
    """The folder of a run of three tiers that hold their experts in different ways."""
    place = tmp_path_factory.mktemp("held")
    rows = [{"prompt": f"add {a} to {a}", "response": f"{2 * a}"} for a in range(30)]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    experiment = {
        "name": "held",
        "rounds": 1,
        "model": {"path": str(tiny_folder)},
        "adapter": {"rank": 4},
        "data": {"name": "files", "path": str(place / "rows.jsonl")},
        "partition": {"name": "iid", "num_clients": 3},
        "budget": {"tiers": {name: {"top_k": 2} | form for name, form in TIERS.items()}},
        "training": {"steps": 1, "batch_size": 2, "probe_examples": 2},
        "evaluation": {"validation_examples": 2, "test_examples": 2, "max_new_tokens": 2},
        "simulation": {"folder": str(place)},
    }
    (place / "run.yaml").write_text(json.dumps(experiment))
    assert main(["run", str(place / "run.yaml"), "--quiet"]) == 0
    return place / "held"


def test_a_tier_answers_with_the_logits_that_it_trained_with(small):
    trained = prepare(SavedRun.experiment_of(small, "last")).setup.model
    valid, found = torch.ones_like(IDS, dtype=torch.bool), {}
    for tier, held in TIERS.items():
        model = at(small, tier)
        assert model.frozen.forms.keys() == {held.get("frozen", "full")}
        assert [state.pages is not None for state in model.states] == [tier == "lowest"] * 2
        trained.load(model.read())
        trained.set_budget(2)
        trained.frozen.use(held.get("frozen", "full"))
        with torch.no_grad():
            ours, theirs = (m.logits(m.hidden(IDS, valid)) for m in (model, trained))
        assert (ours - theirs).abs().max() <= 1e-6
        found[tier] = theirs
    assert not torch.equal(found["full"], found["low"])
    assert not torch.equal(found["low"], found["lowest"])
    asked = at(small, "lowest", "full", False)
    assert asked.frozen.used == "full"
    assert asked.states[0].pages is None


@pytest.mark.parametrize("form", ["full", "int8", "int4"])
def test_experts_in_a_file_answer_bitwise_as_those_in_memory(tiny_folder, form):
    here, there = (base(tiny_folder, experts=form, offload=away) for away in (False, True))
    assert there.model.states[0].pages is not None
    assert torch.equal(decoded(here), decoded(there))


def test_a_fused_checkpoint_in_the_runs_type_is_mapped_and_no_other_is_loaded_into_memory(
    tiny_folder, tmp_path, monkeypatch
):
    fused = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    fused.save_pretrained(tmp_path, save_original_format=False)
    for file in Path(tiny_folder).glob("tokenizer*"):
        (tmp_path / file.name).symlink_to(file)
    loaded = base(tiny_folder, offload=True).model
    weights = [w for layer in loaded.layers for w in weights_of(layer)]
    assert all(map(is_mapped, weights))
    monkeypatch.setattr(offload, "save_file", full_disk)
    assert torch.equal(decoded(base(tmp_path, offload=True)), decoded(base(tiny_folder)))
    assert base(tmp_path).model.states[0].pages is None
    with pytest.raises(ModelError, match="set TMPDIR to a folder with room"):
        base(tiny_folder, offload=True)


def full_disk(tensors, path):
    raise OSError("no space")


def resident(tensor):
    """The bytes of the mapping around a tensor that are in this process's memory."""
    for block in re.split(r"\n(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text()):
        low, high = (int(x, 16) for x in block.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return int(re.search(r"Rss: +(\d+) kB", block)[1]) * 1024
    raise AssertionError("it is not mapped")


def test_what_is_given_up_leaves_memory_and_comes_back_as_it_was():
    weights = torch.randn(4, 256, 1024, generator=torch.Generator().manual_seed(0))
    there = mapped(weights)
    assert torch.equal(there, weights)
    before, one = resident(there), weights[0].nbytes
    assert before >= 4 * one
    give_up(there[1])
    assert before - one - 8192 <= resident(there) + 16384 <= before - one + 32768
    assert torch.equal(there, weights)
    offload.read_soon(there[2])
    assert is_mapped(there)
    there[2, 0, 0] += 1  # as a merged adapter would
    assert not is_mapped(there)
    assert torch.equal(mapped(there), there)
    assert is_mapped(mapped(there))


def test_a_layer_keeps_the_experts_that_were_used_last_and_reads_all_others_at_once(monkeypatch):
    """Against a table that a reader can check; experts are their own numbers here."""
    said = []
    monkeypatch.setattr(paging, "read_soon", lambda e: said.append(("read", int(e))))
    monkeypatch.setattr(paging, "give_up", lambda e: said.append(("give up", int(e))))
    first, last = linked([LayerPages([torch.arange(n, n + 8)]) for n in (0, 10)])
    first.chosen([1, 2, 3, 4], 1)  # a prompt of four tokens; then tokens one by one
    assert said == [("read", e) for e in (1, 2, 3, 4)]
    said.clear()
    last.chosen([5], 1)
    assert said == [("give up", 1), ("give up", 2), ("read", 15)]
    said.clear()
    first.chosen([3], 1)
    last.chosen([6], 1)
    assert said == [("read", 16)]
    said.clear()
    first.chosen([5], 1)
    last.chosen([5], 1)
    assert said == [("read", 5), ("give up", 4)]
    assert [*first.used] == [3, 5]
    assert [*last.used] == [6, 5]


def test_the_command_answers_with_experts_in_any_form(tiny_folder, small, capsys):
    length = ["--max-new-tokens", "1", "one"]
    for where in (["--model", str(tiny_folder)], ["--run", str(small), "--tier", "low"]):
        assert main(["generate", *where, "--experts", "int4", "--offload", *length]) == 0
    assert main(["generate", "--experts", "int2", *length]) == 2
    assert "'full', 'int8', 'int4'" in capsys.readouterr().err
