"""Exports for engines, merged and with an adapter per expert, against a slow sum."""

import json
from dataclasses import replace

import pytest
import torch
from exports import exported, record
from family_models import save, tiny_family
from safetensors.torch import load_file, save_file

from fedmoe.data.text import TextSettings
from fedmoe.data.wording import prompt_ids
from fedmoe.errors import ModelError
from fedmoe.export.architectures import ARCHITECTURES
from fedmoe.export.exported import Export
from fedmoe.export.formats import WHOLE_LAYERS
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

SETTINGS = LoRA(rank=4, alpha=8.0)


@pytest.fixture
def trained(tmp_path, random_adapter):
    """A function that gives a family's folder, its model, and random values of an adapter."""

    def make(kind, lora=SETTINGS, **changes):
        base = tiny_family(FAMILIES[kind], **{"vocab_size": 4096} | changes)
        settings = ModelSettings(path=str(save(base, tmp_path / "base")))
        model = AdaptedModel(base, lora, NoRescaling())
        return settings, model, random_adapter(model.layout)

    return make


def slow_merge(before, adapter, layer, names):
    """One layer's experts of the checkpoint plus scale * B A, one expert at a time."""
    path = f"model.layers.{layer}.mlp.experts"
    gate, up, down = names
    for e in range(8):
        for weight, rows in ((gate, slice(16)), (up, slice(16, 32))):
            b, a = (adapter[f"{path}.gate_up_proj.{f}"][e] for f in "BA")
            before[weight.format(layer, e)] += adapter.layout.scale * (b @ a)[rows]
        b, a = (adapter[f"{path}.down_proj.{f}"][e] for f in "BA")
        before[down.format(layer, e)] += adapter.layout.scale * b @ a
    return before


OLMOE = [f"model.layers.{{}}.mlp.experts.{{}}.{n}_proj.weight" for n in ("gate", "up", "down")]
MIXTRAL = [f"model.layers.{{}}.block_sparse_moe.experts.{{}}.w{n}.weight" for n in (1, 3, 2)]


@pytest.mark.parametrize(("kind", "names"), [("olmoe", OLMOE), ("mixtral", MIXTRAL)])
def test_a_merged_model_is_the_checkpoint_plus_each_experts_product(trained, kind, names, tmp_path):
    settings, model, adapter = trained(kind, LoRA(rank=4, alpha=8.0, attention=False))
    done = exported(adapter, model, settings, tmp_path / "out", "merged")
    assert done.largest_difference < 1e-4
    expected = load_file(f"{settings.path}/model.safetensors")
    for layer in range(2):
        slow_merge(expected, adapter, layer, names)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight)


@pytest.mark.parametrize("kind", ["gpt_oss", "deepseek_v3", "nemotron_h"])
def test_merged_models_of_other_shapes_compute_the_same(trained, kind, tmp_path):
    """Transposed experts, dense layers before the sparse ones, experts without a gate."""
    settings, model, adapter = trained(kind)
    done = exported(adapter, model, settings, tmp_path / "out", "merged")
    assert done.facts["proof"]["same_tokens"] == done.facts["proof"]["tokens"]


def test_a_merged_model_keeps_the_checkpoints_files_and_unties_its_head(trained, tmp_path):
    settings, model, adapter = trained("olmoe", tie_word_embeddings=True)
    base = tmp_path / "base"
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    places = {n: f"model-0000{1 + ('layers.1' in n)}-of-00002.safetensors" for n in weights}
    for file in {*places.values()}:
        save_file({n: w for n, w in weights.items() if places[n] == file}, base / file)
    index = {"metadata": {}, "weight_map": places}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    exported(adapter, model, settings, tmp_path / "out", "merged")
    out = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    head = places["model.embed_tokens.weight"]
    assert out["weight_map"] == places | {"lm_head.weight": head}
    written = load_file(tmp_path / "out" / head)
    assert torch.equal(written["lm_head.weight"], weights["model.embed_tokens.weight"])
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert out["metadata"]["total_size"] == sum(4 * w.numel() for w in weights.values()) + (
        4 * weights["model.embed_tokens.weight"].numel()
    )


@pytest.mark.parametrize("kind", ["olmoe", "gpt_oss"])
def test_a_lower_k_and_factors_go_into_a_merged_model(trained, kind, tmp_path):
    """The proof computes with the folder's own k; factors scale the last weights, and biases."""
    settings, model, adapter = trained(kind)
    changes = {"tier": "low", "top_k": 1, "factors": torch.tensor([1.5, 0.5])}
    done = exported(adapter, model, settings, tmp_path / "out", "merged", **changes)
    assert done.largest_difference < 1e-4
    assert json.loads((tmp_path / "out/config.json").read_text())["num_experts_per_tok"] == 1
    assert done.facts["top_k"] == 1


@pytest.mark.parametrize("format", ["peft", "merged"])
def test_a_cards_lines_compute_at_another_k(trained, format, tmp_path, monkeypatch):
    settings, model, adapter = trained("olmoe")
    done = exported(adapter, model, settings, tmp_path / "an export", format)
    _, _, card = (tmp_path / "an export/README.md").read_text().partition("At another k, such as 1")
    block = card.split("```")[1].splitlines()
    assert {*block[1:]} <= {*done.facts["other_k"]["serve"]}
    assert "num_experts_per_tok=1" in block[1]
    monkeypatch.chdir(tmp_path)  # the base is named without its folders
    found = {}
    for k in (1, 4):
        names = {}
        exec("\n".join(done.source.commands("an export", k)), names)
        with torch.no_grad():
            found[k] = names["model"](**names["prompt"]).logits
            model.load(adapter)
            model.set_budget(k, torch.ones(2))
            torch.testing.assert_close(found[k], model.model(**names["prompt"]).logits)
    assert not torch.allclose(found[1], found[4])


def test_a_trained_router_is_merged_and_has_no_adapter_per_expert(trained, tmp_path):
    settings, model, adapter = trained("olmoe", replace(SETTINGS, router=True))
    assert exported(adapter, model, settings, tmp_path / "m", "merged").largest_difference < 1e-4
    with pytest.raises(ModelError, match="a trained router has no factors; `--for merged`"):
        exported(adapter, model, settings, tmp_path / "out", "vllm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "names"), [("olmoe", OLMOE), ("mixtral", MIXTRAL)])
def test_an_adapter_per_expert_has_the_factors_of_each(trained, kind, names, tmp_path):
    settings, model, adapter = trained(kind)
    done = exported(adapter, model, settings, tmp_path / "out", "vllm")
    assert done.largest_difference < 1e-4
    assert done.facts["writes"] == "experts"
    found = load_file(tmp_path / "out/adapter_model.safetensors")
    gate, up, down = (f"base_model.model.{n.format(1, 3)}" for n in names)
    gate, up, down = (n.removesuffix(".weight") for n in (gate, up, down))
    b = adapter["model.layers.1.mlp.experts.gate_up_proj.B"][3]
    assert torch.equal(found[f"{gate}.lora_B.weight"], b[:16])
    assert torch.equal(found[f"{up}.lora_B.weight"], b[16:])
    for part in (gate, up):
        a = adapter["model.layers.1.mlp.experts.gate_up_proj.A"][3]
        assert torch.equal(found[f"{part}.lora_A.weight"], a)
    assert torch.equal(
        found[f"{down}.lora_A.weight"], adapter["model.layers.1.mlp.experts.down_proj.A"][3]
    )
    config = json.loads((tmp_path / "out/adapter_config.json").read_text())
    last = {n.split(".")[-2] for n in names}
    assert {*config["target_modules"]} == last | {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "target_parameters" not in config


def test_vllm_gets_the_fused_form_where_it_reads_no_other(trained, tmp_path):
    settings, model, adapter = trained("gpt_oss")
    done = exported(adapter, model, settings, tmp_path / "out", "vllm")
    assert done.facts["writes"] == "fused"
    with pytest.raises(ModelError, match="all experts of a layer in one weight"):
        exported(adapter, model, settings, tmp_path / "other", "sglang")


def test_the_proof_sees_one_wrong_expert_in_every_form(trained, tmp_path, monkeypatch):
    settings, model, adapter = trained("olmoe")
    wrong = adapter + (adapter - adapter)
    b = wrong["model.layers.1.mlp.experts.down_proj.B"]
    b[[0, 1]] = b[[1, 0]]
    monkeypatch.setattr(Export, "lasting", property(lambda self: wrong))
    for format in ("peft", "vllm", "merged"):
        with pytest.raises(ModelError, match=r"differ from ours by .* nothing was exported"):
            exported(adapter, model, settings, tmp_path / format, format)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_rounding_that_costs_what_was_learnt_is_refused(trained, tmp_path):
    settings, model, adapter = trained("olmoe")
    small = adapter + (adapter - adapter)
    small.flat.mul_(0.02)
    with pytest.raises(ModelError, match=r"of what training changed; .*; --dtype float32 rounds"):
        exported(small, model, settings, tmp_path / "out", "merged", dtype="bfloat16")
    done = exported(small, model, settings, tmp_path / "out", "merged", dtype="float32")
    assert done.largest_difference < 1e-4


def test_a_card_says_what_rounding_costs_and_not_that_nothing_changed(trained, tmp_path):
    settings, model, adapter = trained("olmoe")
    done = exported(adapter, model, settings, tmp_path / "out", "merged", dtype="bfloat16")
    card = (tmp_path / "out/README.md").read_text()
    lost = 100 * done.facts["proof"]["share_of_training_rounded_away"]
    assert f"rounded to bfloat16: {lost:.1f} % of what was learnt is rounded away" in card
    assert "computes the same" not in card


def test_no_file_names_this_machine_and_every_user_may_read(trained, tmp_path):
    settings, model, adapter = trained("mixtral")
    for format in ("peft", "vllm", "merged"):
        out = tmp_path / format
        exported(adapter, model, settings, out, format)
        for path in out.iterdir():
            assert path.stat().st_mode & 0o777 == 0o644
            assert str(tmp_path).encode() not in path.read_bytes(), path
        assert 'base_model: "base"' in (out / "README.md").read_text()
        assert "[More Information Needed]" not in (out / "README.md").read_text()


def test_a_plain_wording_travels_as_a_chat_template(trained, tmp_path):
    from transformers import AutoTokenizer

    settings, model, adapter = trained("olmoe")
    tokenizer = AutoTokenizer.from_pretrained(settings.path)
    exported(adapter, model, settings, tmp_path / "out", "merged", tokenizer=tokenizer)
    served = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Which way?"}]
    ids = served.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tuple(ids) == prompt_ids("Which way?", tokenizer, TextSettings(template="plain"))


def test_an_existing_folder_is_left_alone(trained, tmp_path):
    settings, model, adapter = trained("olmoe")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        exported(adapter, model, settings, tmp_path / "out")


NOT_MERGED = {"dbrx": "its checkpoint has another form", "nllb-moe": "differ from ours by"}
"""DBRX has two-dimensional experts; transformers' NLLB-MoE does not compute what it says."""
NO_ATTENTION = {"inkling2_text"}
"""A family whose attention layers have other names on some releases of transformers."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_exported_in_every_form_or_says_why_not(kind, trained, tmp_path):
    """`tests/support/export_table.py` makes a page of what is recorded here."""
    lora = replace(SETTINGS, attention=kind not in NO_ATTENTION)
    changes = {
        "mixtral": {"head_dim": 8},
        "qwen3_moe": {"head_dim": 8, "norm_topk_prob": True},
        "qwen3_5_moe_text": {"vocab_size": 4352},  # its class of tokenizers adds one of its own
    }
    settings, model, adapter = trained(kind, lora, **changes.get(kind, {}))
    refusals = {"merged": NOT_MERGED.get(kind)}
    no_peft = FAMILIES[kind].no_peft
    fused = "all experts of a layer in one weight" if kind in WHOLE_LAYERS else None
    refusals |= {"peft": "no export for PEFT" if no_peft else None}
    refusals["sglang"] = refusals["peft"] or fused
    gguf = None if kind in ARCHITECTURES else "convert_hf_to_gguf|no plain|no export for PEFT"
    refusals |= {"llama.cpp": gguf, "llama.cpp-lora": gguf}
    for format, refusal in refusals.items():
        if refusal is None:
            done = exported(adapter, model, settings, tmp_path / format, format)
            assert done.largest_difference < 1e-3
            record(kind, format, "computes the same")
        else:
            with pytest.raises(ModelError, match=refusal) as said:
                exported(adapter, model, settings, tmp_path / format, format)
            record(kind, format, str(said.value))
