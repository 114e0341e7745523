"""An adapter with a pair of factors for every expert, in the names of the model's checkpoint.

vLLM, SGLang and llama.cpp read adapters of experts in this form. The factors stay as they are: an
expert's gate and up-projection have the same A, and half of B's rows each.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from fedmoe.adapter import Adapter
from fedmoe.export.changes import changes_of, factors_in_checkpoint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def write_per_expert(
    adapter: Adapter, base: nn.Module, name: str, out: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Write the adapter into the folder `out`.

    Args:
        base: the model as transformers builds it; its weights are not read.
        name: of the base, for the adapter's config.
        out: an empty folder.

    Raises:
        ModelError: the checkpoint has all experts of a layer in one weight, or routers are trained.
    """
    tensors, modules = {}, set()
    for weight, a, b in factors_in_checkpoint(base, changes_of(adapter, base)):
        path = weight.removesuffix(".weight")
        tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(dtype).contiguous().clone()
        tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(dtype).contiguous().clone()
        modules.add(path.rpartition(".")[2])
    save_file(tensors, out / WEIGHTS, {"format": "pt"})
    layout = adapter.layout
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "r": layout.rank,
        "lora_alpha": int(layout.alpha) if layout.alpha == int(layout.alpha) else layout.alpha,
        "target_modules": sorted(modules),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
        "fan_in_fan_out": False,
        "use_rslora": False,
        "modules_to_save": None,
    }
    (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
