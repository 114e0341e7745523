"""Phi-3.5-MoE (arXiv:2404.14219): two experts by sparsemixer, whose router never reads top_k."""

from __future__ import annotations

from torch import Tensor, nn

from fedmoe.models.families.family import Family

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
)
