"""Sizes of models that plans are made for: a small one, OLMoE's, and the built-in model's k."""

import json
from pathlib import Path

from fedmoe.budget.shape import Shape
from fedmoe.models.build import model_folder

MINI = json.loads((Path(model_folder("mini")) / "config.json").read_text())
"""The built-in model's own configuration: a test that needs a number of it asks here."""
FULL_TOP_K = MINI["num_experts_per_tok"]

SHAPE = Shape(
    num_layers=4,
    num_experts=16,
    top_k=4,
    hidden=256,
    width=128,
    vocabulary=4096,
    rank=8,
    query=256,
    key=256,
    norms_queries=True,
    adapts_attention=True,
    element_bytes=4,
    weight_bytes=33_899_520,
    adapter=524_288,
    dense=1_064_960,
    head=1_048_576,
    expert=393_216,
    dense_lora=65_536,
    expert_lora=28_672,
)

OLMOE = {
    "model_type": "olmoe",
    "vocab_size": 50304,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "tie_word_embeddings": False,
}
"""The sizes of OLMoE-1B-7B, as its configuration on the Hub has them."""
