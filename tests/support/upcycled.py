"""Tiny random dense models for the tests of `fedmoe upcycle`."""

import shutil
from pathlib import Path

import torch

SIZES = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
KINDS = {
    # What the sparse classes' defaults would get wrong if it were not carried over.
    "llama": {"head_dim": 16, "tie_word_embeddings": True, "rope_theta": 500.0},
    "mistral": {"sliding_window": None, "head_dim": 8},
    "qwen2": {"use_sliding_window": False},
}


def tiny_dense(kind="llama", **changes):
    """A random dense model whose feed-forward layers and biases matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **(SIZES | KINDS.get(kind, {}) | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model.eval().requires_grad_(False)


def dense_folder(folder, kind="llama", **changes):
    """Such a model on disk, with the built-in model's tokenizer."""
    import fedmoe.models

    tiny_dense(kind, **changes).save_pretrained(folder)
    for source in (Path(fedmoe.models.__file__).parent / "mini").glob("tokenizer*"):
        shutil.copy(source, folder)
    return folder
