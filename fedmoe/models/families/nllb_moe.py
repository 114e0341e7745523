"""NLLB-MoE (arXiv:2207.04672): encoder-decoder for translation, top-2, experts without a gate.

Computed as it was trained to be served, and as transformers 4 did: each token meets its two best
experts, with their shares divided by their sum, and the experts' output is multiplied by
`1 - moe_token_dropout`. Its published config serves with a capacity of all tokens, so that none is
dropped. transformers 5.23 misreads the router's mask as the number of an expert, and so sends every
token to experts 0 and 1, whatever the router says.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from fedmoe.errors import ModelError
from fedmoe.models.families.family import Family, Form
from fedmoe.models.families.ungated import stack_experts

LINEARS = ("fc1", "fc2")


def _dropless(router: nn.Module, block: nn.Module) -> None:
    """Let the router return logits, weights and index (tokens, k), before any capacity."""
    if router.second_expert_policy != "all":
        raise ModelError(
            f"second_expert_policy is {router.second_expert_policy!r}: it leaves out second "
            "experts by chance, so that counts would not say what was computed; set it to 'all'"
        )
    router.top_k = 2  # pyright: ignore[reportArgumentType]
    router.kept = 1 - float(block.get_submodule("experts").moe_token_dropout)  # pyright: ignore
    router.register_forward_hook(_choice)


def _choice(router: nn.Module, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]):
    r"""Weights $p_j / \max(p_1 + p_2, \epsilon)$ of the two best, or of the best alone.

    With k = 1 it is what the class computes for a token whose second expert is full: the weight is
    1, or with `normalize_router_prob_before_dropping` $p_1 / (p_1 + p_2)$.
    """
    k = int(router.top_k)  # pyright: ignore[reportArgumentType]
    if k > 2:
        raise ModelError(f"NLLB-MoE got top_k = {k}: its router chooses 2 experts")
    logits, dtype = output[2], inputs[0].dtype
    shares = torch.softmax(logits, dim=-1, dtype=router.dtype).to(dtype)  # pyright: ignore
    first = shares.argmax(dim=-1, keepdim=True)
    second = logits.scatter(-1, first, -torch.inf).argmax(dim=-1, keepdim=True)
    both = torch.cat([first, second], dim=-1)
    chosen, index = shares.gather(-1, both), both[:, :k]
    summed = chosen if router.normalize_router_prob_before_dropping else chosen[:, :k]
    total = summed.sum(-1, keepdim=True).clamp_min(torch.finfo(dtype).eps)
    return logits, chosen[:, :k] / total * float(router.kept), index  # pyright: ignore


FAMILY = Family(
    name="NLLB-MoE",
    model_type="nllb-moe",
    task="seq2seq",
    block="ffn",
    router="router",
    attention=("q_proj", "k_proj", "v_proj", "out_proj"),
    scaled="moe_token_dropout",
    form=Form(gated=False, bias=True),
    linears=LINEARS,
    install=partial(stack_experts, linears=LINEARS, act="act", prepare=_dropless),
    notes="prompts to the encoder, responses from the decoder; languages are its tokenizer's "
    "src_lang and tgt_lang; no capacity: no token is dropped; FLOPs count a token in both stacks, "
    "of which it passes one",
    no_peft="transformers 5.23 sends every token of NLLB-MoE to its experts 0 and 1, whatever the "
    "router says, so that PEFT would serve another model",
)
