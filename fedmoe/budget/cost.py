"""The cost of a budget: trainable parameters, bytes per round, FLOPs per token, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedmoe.budget.model import kept_bytes, saved_bytes
from fedmoe.budget.shape import Setting, shape_of
from fedmoe.messages.codec import most_bytes

if TYPE_CHECKING:
    from fedmoe.aggregation.strategy import Layouts
    from fedmoe.messages.compression import Compression
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import Subset

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
    """Upper bounds of the two messages of one round: the size if all experts were used."""
    forward_flops_per_token: float
    train_flops_per_token: float
    """Both of a mean token, of which a part meets the output head."""
    memory_bytes: int
    """Frozen weights, optimiser and the activations saved for one batch; an estimate."""
    expert_bytes: int = 0
    """The part of it that frozen experts take; 0 if they are offloaded."""
    full_expert_bytes: int = 0
    """The same without any memory option."""
    target_share: float = 1.0
    """The part of tokens that meets the head: those that a response token is predicted from."""
    head_flops: float = 0.0
    """One pass of a token through the head."""

    def train_flops(self, tokens: int, targets: int) -> float:
        """Return the FLOPs of training on `tokens` tokens, `targets` of which meet the head."""
        more = targets - self.target_share * tokens
        return self.train_flops_per_token * tokens + 2 * self.head_flops * more


def cost(
    model: AdaptedModel,
    layouts: Layouts,
    top_k: int,
    batch_tokens: int,
    upload: Compression,
    frozen: Frozen = "full",
    offload: bool = False,
    subset: Subset | None = None,
    target_share: float = 1.0,
) -> Cost:
    """Return the cost of training with `top_k` experts on batches of `batch_tokens` tokens.

    A product of a (m, n) weight counts 2 m n FLOPs per token; norms, softmax and attention scores
    are left out (they grow with the sequence, not with k). Backward computes no gradient of frozen
    weights, so it costs one further pass through them and two through LoRA; where nothing before
    learns (`Shape.first`) it stops. The output head is computed for `target_share` of all tokens.
    """
    shape = shape_of(model, layouts.model)
    base = shape.dense + target_share * shape.head + top_k * shape.expert
    lora = shape.dense_lora + top_k * shape.expert_lora
    merges = subset is not None and subset.merges
    bytes_down, bytes_up = most_bytes(layouts.task, layouts.update, upload, merges)
    setting = Setting(top_k, 1, batch_tokens, 0, frozen=frozen, offload=offload, subset=subset)
    trained, frozen_part = layouts.trained.size, max(0, layouts.model.size - layouts.trained.size)
    optimiser = FLOAT_BYTES * (OPTIMISER_COPIES * trained + 2 * frozen_part)
    return Cost(
        top_k=top_k,
        parameters=layouts.trained.size,
        bytes_down=bytes_down,
        bytes_up=bytes_up,
        forward_flops_per_token=2.0 * (base + lora),
        train_flops_per_token=2.0 * (2 * base + 3 * lora - shape.first),
        memory_bytes=round(kept_bytes(shape, setting) + optimiser + saved_bytes(shape, setting)),
        expert_bytes=0 if offload else shape.experts_bytes(frozen, subset),
        full_expert_bytes=shape.experts_bytes("full"),
        target_share=target_share,
        head_flops=2.0 * shape.head,
    )
