"""PEFT folders from before experts were fused: their factors, a linear layer an expert, as stacks.

Gate and up projection have factors of their own there. Stacked they are those of the fused weight,
of twice the rank: `[B_g A_g; B_u A_u] = diag(B_g, B_u) [A_g; A_u]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmoe.errors import ModelError

EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)$")
NEW = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
"""The names of Mixtral's projections."""
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}

Pair = tuple[Tensor, Tensor]
"""`A` and `B`."""


def is_by_expert(layers: Sequence[str]) -> bool:
    """Return whether one of these layers is an expert's projection."""
    return any(EXPERT.match(layer) for layer in layers)


def stacked(pairs: Mapping[str, Pair], num_experts: int) -> dict[str, Pair]:
    """Return the factors by weight, with those of single experts as stacks.

    Raises:
        ModelError: some experts of a layer have factors, and not all.
    """
    found: dict[str, Pair] = {}
    single: dict[tuple[str, str], dict[int, Pair]] = {}
    for layer, pair in pairs.items():
        if match := EXPERT.match(layer):
            path, expert, name = match.groups()
            single.setdefault((path, NEW.get(name, name)), {})[int(expert)] = pair
        else:
            found[layer] = pair
    for path in dict.fromkeys(path for path, _ in single):
        for weight, names in FUSED.items():
            parts = [single[path, name] for name in names if (path, name) in single]
            if not parts:
                continue
            if len(parts) < len(names) or any(len(part) < num_experts for part in parts):
                raise ModelError(f"{path}.{weight}: some experts have factors, and not all")
            each = [_joined([part[e] for part in parts]) for e in range(num_experts)]
            a, b = (torch.stack(factors) for factors in zip(*each, strict=True))
            found[f"{path}.{weight}"] = a, b
    return found


def _joined(pairs: Sequence[Pair]) -> Pair:
    """Return the factors of several weights with one input, one under the other."""
    return torch.cat([a for a, _ in pairs]), torch.block_diag(*(b for _, b in pairs))
