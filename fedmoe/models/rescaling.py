"""Rescalings of a sparse layer's output when fewer than K experts are active.

A router that does not renormalise its weights returns a smaller output at a lower k. FLAME
(arXiv:2506.16600) multiplies the layer's output by one scalar, learned or `K / k`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedmoe.errors import Fault, ModelError
from fedmoe.models.families import Family
from fedmoe.section import Component, Open, section


class Rescaling(Component):
    """Base of rescalings: one factor per layer and budget.

    Example:
        >>> class Half(Rescaling):
        ...     def initial(self, num_layers, full_top_k, top_k):
        ...         return torch.full((num_layers,), 1.0 if top_k == full_top_k else 0.5)
        >>> Half().initial(2, 8, 1)
        tensor([0.5000, 0.5000])
    """

    learned: ClassVar[bool] = False
    """Clients train the factors."""
    learning_rate: Any = 0.01
    """AdamW's step for learned factors; they need larger steps than weights."""

    @property
    def reweighs(self) -> bool:
        """Return whether it changes the routers' weights, not just the layer's output."""
        return False

    def initial(self, num_layers: int, full_top_k: int, top_k: int) -> Tensor:
        """Return the factors before round 1, (layers,)."""
        return torch.ones(num_layers)


@section
class NoRescaling(Rescaling):
    """Leave the output as the router weighs it."""

    name: Literal["none"] = "none"


@section
class StaticRescaling(Rescaling):
    """A fixed correction for the experts that are missing."""

    name: Literal["static"] = "static"
    by: Literal["ratio", "mass"] = "ratio"
    """`ratio`: multiply by K / k. `mass`: let each token's k weights sum to what its K would."""

    @property
    def reweighs(self) -> bool:
        return self.by == "mass"

    def initial(self, num_layers: int, full_top_k: int, top_k: int) -> Tensor:
        return torch.full((num_layers,), 1.0 if self.reweighs else full_top_k / top_k)

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield gatings under which k weights, or k experts a token, mean something else."""
        gating = experiment.gating
        named = f"gating.name {gating.name!r}"
        if self.reweighs and not gating.own:
            said = f"'mass' and {named} both change routers' weights; use 'ratio'"
            yield Fault("rescaling.by", said)
        elif gating.serves and not gating.exact_counts:
            yield Fault(
                "rescaling.name",
                f"'static' assumes that every token reaches k experts, which is not so with "
                f"{named}; use 'none' or 'learned'",
            )


@section
class LearnedRescaling(Rescaling):
    """One trained factor per layer, kept per budget tier: it never mixes tiers."""

    name: Literal["learned"] = "learned"
    start: Literal["one", "ratio"] = "one"
    """First value: 1, or K / k."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    """AdamW's step for the factors; they need larger steps than weights."""
    learned: ClassVar[bool] = True

    def initial(self, num_layers: int, full_top_k: int, top_k: int) -> Tensor:
        return torch.full((num_layers,), full_top_k / top_k if self.start == "ratio" else 1.0)


RESCALINGS = Open("fedmoe.rescalings", Rescaling, (NoRescaling, StaticRescaling, LearnedRescaling))
"""What `rescaling` in a configuration may name."""


def check_mass(family: Family) -> None:
    """Refuse to keep the mass of routers that do not choose by weight.

    Raises:
        ModelError: with the likely fix.
    """
    if family.corrected or family.scores == "sparsemixer":
        raise ModelError(
            f"rescaling.by 'mass' takes the largest k of K weights, and routers of {family.name} "
            f"models choose by more than that ({family.rule}); use 'ratio', or rescaling.name "
            "'none': where weights are normalised they keep their sum by themselves"
        )


def keep_mass(router: nn.Module, full_top_k: int) -> None:
    """Make `router` choose its k of K experts with weights that sum to what all K would.

    The router itself chooses K; a hook keeps the k largest and scales them. At k = K it is exact.
    The hook reads the wanted k from `router.top_k`, which it hides from the router's own forward.
    """

    def choose_all(module: nn.Module, _inputs: object) -> None:
        module.wanted_top_k = module.top_k  # pyright: ignore
        module.top_k = full_top_k  # pyright: ignore

    def keep_largest(module: nn.Module, _inputs: object, output: tuple[Tensor, Tensor, Tensor]):
        module.top_k = k = int(module.wanted_top_k)  # pyright: ignore
        logits, weights, index = output
        top, where = weights.topk(k, dim=-1)
        scale = weights.sum(-1, keepdim=True) / top.sum(-1, keepdim=True).clamp_min(1e-20)
        return logits, top * scale, index.gather(-1, where)

    router.register_forward_pre_hook(choose_all)
    router.register_forward_hook(keep_largest)
