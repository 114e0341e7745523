"""Llama 4's language model: transformers sends every token through all experts, and we do not.

Its router multiplies the *input* of a chosen expert by a sigmoid and that of all others by zero,
and one batched product computes all of them. An expert without bias makes zero of zero, so that
leaving the others out is exact.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fedmoe.models.experts import experts_forward
from fedmoe.models.families.family import Family, Form


class RoutedBlock(nn.Module):
    """`Llama4TextMoe` with the same children, of which tokens meet the chosen experts alone."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.experts, self.router, self.shared_expert = (
            block.get_submodule(name) for name in ("experts", "router", "shared_expert")
        )
        flags = {
            "has_gate": True,
            "has_bias": False,
            "is_transposed": True,
            "is_concatenated": True,
            "has_post_expert_norm": False,
            "weighs_input": True,
        }
        for flag, value in flags.items():  # what transformers' decorator would have set
            setattr(self.experts, flag, value)
        self.experts.forward = partial(experts_forward, self.experts)
        self.router.register_forward_hook(_choice)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden.reshape(-1, hidden.shape[-1])
        logits, weights, index = self.router(rows)
        routed = self.experts(rows, index, weights)
        return self.shared_expert(rows) + routed, logits


def _choice(router: nn.Module, _inputs: object, output: tuple[Tensor, Tensor]):
    """Logits, weights and index (tokens, top_k), as other families' routers return them."""
    _, logits = output
    top, index = logits.topk(int(router.top_k), dim=1)  # pyright: ignore[reportArgumentType]
    return logits, torch.sigmoid(top.float()).to(logits.dtype), index


def install(model: nn.Module) -> None:
    """Replace every sparse block."""
    for layer in model.get_submodule("model.layers").children():
        block = layer.get_submodule("feed_forward")
        if hasattr(block, "router") and not isinstance(block, RoutedBlock):
            layer.feed_forward = RoutedBlock(block)


FAMILY = Family(
    name="Llama 4",
    model_type="llama4_text",
    block="feed_forward",
    router="router",
    scores="sigmoid",
    normalised="never",
    shared=True,
    form=Form(transposed=True, weighs_input=True),
    notes="text alone; transformers itself computes all experts, whatever k",
    install=install,
)
