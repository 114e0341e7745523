"""What a budget costs: trainable parameters, bytes per round, FLOPs per token, memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedmoe.compression import Compression
from fedmoe.models.adapted import AdaptedModel, LoRALinear
from fedmoe.wire import most_bytes

FLOAT_BYTES = 4
OPTIMISER_COPIES = 4
"""The adapter, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class Cost:
    """The cost of one client at one `top_k`."""

    top_k: int
    parameters: int
    """Trainable parameters."""
    bytes_down: int
    bytes_up: int
    """The most that the two messages of one round can take: that all experts were used."""
    forward_flops_per_token: float
    train_flops_per_token: float
    memory_bytes: int
    """Frozen weights, optimiser and the activations saved for one batch; an estimate."""


def cost(model: AdaptedModel, top_k: int, batch_tokens: int, upload: Compression) -> Cost:
    """The cost of training with `top_k` experts on batches of `batch_tokens` tokens.

    A product of a (m, n) weight counts 2 m n FLOPs per token; norms, softmax and attention scores
    are left out (they grow with the sequence, not with k). Backward computes no gradient of frozen
    weights, so it costs one further pass through them and two through LoRA.
    """
    dense, dense_lora, expert, expert_lora = _per_token(model)
    frozen, lora = dense + top_k * expert, dense_lora + top_k * expert_lora
    layout = model.layout
    bytes_down, bytes_up = most_bytes(layout, upload)
    weights = (
        sum(p.numel() * p.element_size() for p in model.model.parameters())
        - FLOAT_BYTES * layout.size
    )
    optimiser = OPTIMISER_COPIES * FLOAT_BYTES * layout.size
    return Cost(
        top_k=top_k,
        parameters=layout.size,
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        forward_flops_per_token=2.0 * (frozen + lora),
        train_flops_per_token=2.0 * (2 * frozen + 3 * lora),
        memory_bytes=weights + optimiser + batch_tokens * _saved_bytes_per_token(model, top_k),
    )


def _per_token(model: AdaptedModel) -> tuple[int, int, int, int]:
    """Weights a token meets: dense, LoRA on dense, one expert in every layer, LoRA on it."""
    dense = dense_lora = expert = expert_lora = 0
    for module in model.model.modules():
        if isinstance(module, nn.Linear):
            dense += module.weight.numel()
        elif isinstance(module, LoRALinear):
            dense_lora += module.A.numel() + module.B.numel()
    for layer, state in zip(model.layers, model.states, strict=True):
        dense += layer.router.weight.numel()  # pyright: ignore
        for weight in (layer.experts.gate_up_proj, layer.experts.down_proj):
            expert += weight[0].numel()  # pyright: ignore
        assert state.lora is not None
        expert_lora += sum(factor[0].numel() for factor in state.lora[:4])
    return dense, dense_lora, expert, expert_lora


def _saved_bytes_per_token(model: AdaptedModel, top_k: int) -> int:
    """Per layer: about twelve hidden-sized tensors, and k rows of pre-activations and low ranks."""
    total = 0
    for layer in model.layers:
        weight = layer.experts.gate_up_proj
        assert isinstance(weight, Tensor)
        _, double_width, hidden = weight.shape
        total += 12 * hidden + top_k * (double_width + 2 * model.layout.rank)
    return FLOAT_BYTES * total
