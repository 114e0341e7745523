"""Phi-3.5-MoE (arXiv:2404.14219): two experts by sparsemixer, whose router never reads top_k."""

from __future__ import annotations

from torch import Tensor, nn

from fedmoe.models.families.family import Family, Size

SLICED = "fedmoe_sliced"


def honour_top_k(router: nn.Module) -> None:
    """Keep the first `top_k` of the two columns that the router returns.

    Exact: sparsemixer (arXiv:2409.12136) picks the first expert and its weight without a look at
    the second, so that its choice of one expert is the first column of its choice of two.
    """
    if hasattr(router, SLICED):
        return
    setattr(router, SLICED, True)

    def first(module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor, Tensor]):
        logits, weights, index = output
        k = int(module.top_k)  # pyright: ignore[reportArgumentType]
        return logits, weights[:, :k], index[:, :k]

    router.register_forward_hook(first)


FAMILY = Family(
    name="Phi-3.5-MoE",
    model_type="phimoe",
    router="router",
    scores="sparsemixer",
    normalised="never",
    prepare_router=honour_top_k,
    tiny={"num_local_experts": 8, "num_experts_per_tok": 2},
    sizes=(
        Size(
            "Phi-3.5-MoE",
            {
                "hidden_size": 4096,
                "intermediate_size": 6400,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "num_local_experts": 16,
                "num_experts_per_tok": 2,
                "vocab_size": 32064,
                "attention_bias": True,
                "lm_head_bias": True,
            },
            "https://huggingface.co/microsoft/Phi-3.5-MoE-instruct/blob/main/config.json",
            "41.9 B, 6.6 B active",
        ),
    ),
)
