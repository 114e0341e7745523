"""GGUF files of merged models and adapters, against the merged checkpoint."""

import numpy as np
import pytest
import torch
from exports import exported
from family_models import save, tiny_family
from safetensors.torch import load_file

from fedmoe.errors import ModelError
from fedmoe.export.gguf_file import Names
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


@pytest.fixture
def trained(tmp_path, random_adapter):
    def make(kind, **changes):
        sizes = {"vocab_size": 4096, "hidden_size": 32, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
        if kind == "qwen3_moe":
            sizes["norm_topk_prob"] = True
        base = tiny_family(FAMILIES[kind], **sizes | changes)
        settings = ModelSettings(path=str(save(base, tmp_path / "base")))
        model = AdaptedModel(base, LoRA(rank=4, alpha=8.0), NoRescaling())
        return settings, model, random_adapter(model.layout)

    return make


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
    done = exported(adapter, model, settings, tmp_path / "out", "llama.cpp", top_k=1)
    assert done.largest_difference < 1e-4
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    (used,) = (f for name, f in fields.items() if name.endswith("expert_used_count"))
    assert used.contents() == 1
