"""Switch Transformer (arXiv:2101.03961): encoder-decoder, top-1, experts without a gate.

A token's expert is the one its router likes best. An expert takes `expert_capacity` tokens of a
sequence (64 by default), the first ones; those after them meet no expert, as in the class. Other
sequences of a batch and padding, which comes last, have no say. Decoding with a cache the class
sees one token at a time, so that none is over the capacity there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.families.family import Family, Form
from fedmoe.models.families.ungated import stack_experts

LINEARS = ("wi", "wo")


def _prepare(router: nn.Module, _block: nn.Module) -> None:
    """Let the router return logits, weight and index (tokens, 1) of (batch, length, hidden)."""
    router.top_k = 1  # pyright: ignore[reportArgumentType]
    router.register_forward_hook(_choice)


def _choice(router: nn.Module, _inputs: object, output: tuple[Tensor, Tensor, Tensor]):
    if router.top_k != 1:
        raise ModelError(
            f"Switch Transformer got top_k = {router.top_k}: it is trained with one "
            "expert per token, whose weight is its share of all; a second has no meaning. Let "
            "budgets differ in rank, steps or the form of frozen experts instead"
        )
    taken, weights, logits = (x.flatten(0, -2) for x in output)
    none = taken.sum(-1, keepdim=True) == 0  # its expert was full
    index = taken.argmax(dim=-1, keepdim=True).masked_fill(none, taken.shape[-1])
    return logits, weights.masked_fill(none, 0), index


def scale_logits(config: Any, logits: Tensor) -> Tensor:
    """Scale logits as the class scales the decoder's states before a tied head."""
    return logits * config.d_model**-0.5 if config.tie_word_embeddings else logits


FAMILY = Family(
    name="Switch Transformer",
    model_type="switch_transformers",
    task="seq2seq",
    router="router",
    attention=("q", "k", "v", "o"),
    normalised="never",
    capacity=True,
    form=Form(gated=False),
    linears=LINEARS,
    install=partial(stack_experts, linears=LINEARS, act="act", prepare=_prepare, by_sequence=True),
    scale_logits=scale_logits,
    notes="prompts to the encoder, responses from the decoder; k is 1; an expert takes "
    "expert_capacity tokens of a sequence, those after them meet none; FLOPs count a token in both "
    "stacks, of which it passes one",
)
