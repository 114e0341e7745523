"""What a budget costs: trainable parameters, bytes per round, FLOPs per token, memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedmoe.adapter import Layout
from fedmoe.aggregation.strategy import Layouts
from fedmoe.compression import Compression
from fedmoe.models.adapted import AdaptedModel
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


def cost(
    model: AdaptedModel, layouts: Layouts, top_k: int, batch_tokens: int, upload: Compression
) -> Cost:
    """The cost of training with `top_k` experts on batches of `batch_tokens` tokens.

    A product of a (m, n) weight counts 2 m n FLOPs per token; norms, softmax and attention scores
    are left out (they grow with the sequence, not with k). Backward computes no gradient of frozen
    weights, so it costs one further pass through them and two through LoRA.
    """
    dense, expert = _per_token(model)
    dense_lora, expert_lora = _lora_per_token(layouts.model)
    frozen, lora = dense + top_k * expert, dense_lora + top_k * expert_lora
    bytes_down, bytes_up = most_bytes(layouts.task, layouts.update, upload)
    weights = (
        sum(p.numel() * p.element_size() for p in model.model.parameters())
        - FLOAT_BYTES * model.bound.size
    )
    trained, frozen_part = layouts.trained.size, max(0, layouts.model.size - layouts.trained.size)
    optimiser = FLOAT_BYTES * (OPTIMISER_COPIES * trained + 2 * frozen_part)
    return Cost(
        top_k=top_k,
        parameters=layouts.trained.size,
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        forward_flops_per_token=2.0 * (frozen + lora),
        train_flops_per_token=2.0 * (2 * frozen + 3 * lora),
        memory_bytes=weights
        + optimiser
        + batch_tokens * _saved_bytes_per_token(model, layouts.model.rank, top_k),
    )


def _per_token(model: AdaptedModel) -> tuple[int, int]:
    """Frozen weights a token meets: dense, and one expert in every layer."""
    dense = expert = 0
    for module in model.model.modules():
        if isinstance(module, nn.Linear):
            dense += module.weight.numel()
    for layer in model.layers:
        dense += layer.router.weight.numel()  # pyright: ignore
        for weight in (layer.experts.gate_up_proj, layer.experts.down_proj):
            expert += weight[0].numel()  # pyright: ignore
    return dense, expert


def _lora_per_token(layout: Layout) -> tuple[int, int]:
    """LoRA weights a token meets: on dense parts, and on one expert in every layer."""
    factors = [entry for entry in layout.entries if entry.rank_axis is not None]
    sizes = [(entry.layer is None, entry.stop - entry.start) for entry in factors]
    dense = sum(size for is_dense, size in sizes if is_dense)
    return dense, sum(size for is_dense, size in sizes if not is_dense) // layout.num_experts


def _saved_bytes_per_token(model: AdaptedModel, rank: int, top_k: int) -> int:
    """Per layer: about twelve hidden-sized tensors, and k rows of pre-activations and low ranks."""
    total = 0
    for layer in model.layers:
        weight = layer.experts.gate_up_proj
        assert isinstance(weight, Tensor)
        _, double_width, hidden = weight.shape
        total += 12 * hidden + top_k * (double_width + 2 * rank)
    return FLOAT_BYTES * total
