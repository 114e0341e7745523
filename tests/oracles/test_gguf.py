"""GGUF files of merged models and adapters, against the merged checkpoint."""

import numpy as np
import pytest
import torch
from exports import exported
from family_models import save, tiny_family
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fedmoe.errors import ModelError
from fedmoe.export.gguf_file import Names, write_gguf
from fedmoe.export.gguf_vocab import SAMPLE, split_name
from fedmoe.models.adapted import AdaptedModel, LoRA
from fedmoe.models.build import ModelSettings, skeleton
from fedmoe.models.families import FAMILIES
from fedmoe.models.rescaling import NoRescaling

gguf = pytest.importorskip("gguf", reason="pip install 'fedmoe[base-models]'")
KINDS = ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe"]
GATES = {
    "olmoe": "model.layers.1.mlp.experts.{}.gate_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.{}.w1.weight",
}
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)


def tokenizer_with(pre):
    """A tokenizer of 400 tokens, trained on the sample: gguf reads many tokens slowly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>", "<eos>"]
    )
    tokenizer.train_from_iterator([SAMPLE] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def trained(tmp_path, random_adapter):
    def make(kind, **changes):
        sizes = {"vocab_size": 512, "hidden_size": 32, "num_attention_heads": 4}
        # llama.cpp has no grouped keys for OLMoE.
        sizes |= {"num_key_value_heads": 4 if kind == "olmoe" else 2, "head_dim": 8}
        if kind == "qwen3_moe":
            sizes["norm_topk_prob"] = True
        base = tiny_family(FAMILIES[kind], **sizes | changes)
        settings = ModelSettings(path=str(save(base, tmp_path / "base")))
        model = AdaptedModel(base, LoRA(rank=4, alpha=8.0), NoRescaling())
        return settings, model, random_adapter(model.layout)

    return make


def export(*args, **changes):
    return exported(*args, tokenizer=tokenizer_with(BYTES), **changes)


def tensors(path):
    """The tensors of a file by name, in float32 and with torch's order of axes."""
    return {
        one.name: torch.from_numpy(
            np.array(gguf.quants.dequantize(one.data, one.tensor_type))
        ).view(*map(int, one.shape[::-1]))
        for one in gguf.GGUFReader(path).tensors
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_models_file_computes_as_in_training(kind, trained, tmp_path):
    """The proof reads the file by gguf, and transformers computes with what it holds."""
    settings, model, adapter = trained(kind)
    done = export(adapter, model, settings, tmp_path / "out", "llama.cpp", top_k=1)
    assert done.largest_difference < 1e-4
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    (used,) = (f for name, f in fields.items() if name.endswith("expert_used_count"))
    assert used.contents() == 1


@pytest.mark.parametrize("kind", GATES)
def test_experts_are_stacked_and_metas_order_is_kept(kind, trained, tmp_path):
    settings, model, adapter = trained(kind)
    export(adapter, model, settings, tmp_path / "gguf", "llama.cpp")
    export(adapter, model, settings, tmp_path / "merged", "merged")
    found = tensors(tmp_path / "gguf/model.gguf")
    expected = load_file(tmp_path / "merged/model.safetensors")
    for e in range(8):
        torch.testing.assert_close(
            found["blk.1.ffn_gate_exps.weight"][e], expected[GATES[kind].format(e)]
        )
    q, slow = expected["model.layers.0.self_attn.q_proj.weight"], []
    for head in q.split(8):  # of eight rows: two halves that rotate as pairs
        if kind == "mixtral":
            pairs = zip(head[:4], head[4:], strict=True)
            slow += [row for pair in pairs for row in pair]
        else:
            slow += [*head]
    torch.testing.assert_close(found["blk.0.attn_q.weight"], torch.stack(slow))


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapters_file_has_each_experts_factors(kind, trained, tmp_path):
    settings, model, adapter = trained(kind)
    done = export(adapter, model, settings, tmp_path / "out", "llama.cpp-lora")
    assert done.largest_difference < 1e-4
    found = tensors(tmp_path / "out/adapter.gguf")
    a, b = (adapter[f"model.layers.1.mlp.experts.gate_up_proj.{f}"] for f in "AB")
    for part, rows in (("gate", slice(16)), ("up", slice(16, 32))):
        assert torch.equal(found[f"blk.1.ffn_{part}_exps.weight.lora_a"], a)
        assert torch.equal(found[f"blk.1.ffn_{part}_exps.weight.lora_b"], b[:, rows])
    fields = gguf.GGUFReader(tmp_path / "out/adapter.gguf").fields
    assert fields["adapter.type"].contents() == "lora"
    assert fields["adapter.lora.alpha"].contents() == 8.0


def test_the_proof_sees_one_wrong_tensor(trained, tmp_path, monkeypatch):
    settings, model, adapter = trained("olmoe")
    grouped = Names.grouped

    def swapped(self, weights):
        found = grouped(self, weights)
        name = "blk.1.ffn_up_exps.weight"
        found[name] = found[name][::-1]
        return found

    # As written; the reader's order is right.
    def wrong(*args, **options):
        with monkeypatch.context() as m:
            m.setattr(Names, "grouped", swapped)
            write_gguf(*args, **options)

    monkeypatch.setattr("fedmoe.export.exported.write_gguf", wrong)
    with pytest.raises(ModelError, match="differ from ours by"):
        export(adapter, model, settings, tmp_path / "out", "llama.cpp")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("olmoe", {"norm_topk_prob": True}, "with norm_topk_prob False alone, and the model has"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
        ("mixtral", {"sliding_window": 64}, "sliding_window"),
        ("gpt_oss", {}, r"gpt_oss: export with --for merged, and .*convert_hf_to_gguf"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(kind, changes, said, trained, tmp_path):
    settings, _, _ = trained(kind, **changes)
    with pytest.raises(ModelError, match=said):
        _ = Names(skeleton(settings.path)).architecture


def test_a_tokenizer_that_llama_cpp_splits_otherwise_is_refused():
    """Text is split before merges: tokens across the pieces show the wrong way."""
    assert split_name(tokenizer_with(BYTES), ["any text"]) == "gpt-2"
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with pytest.raises(ModelError, match="splits text in none of the"):
        split_name(tokenizer_with(whole), [])
