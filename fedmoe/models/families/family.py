"""The facts of a family of sparse MoE models: names of its parts, and how its routers weigh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from fedmoe.models import experts
from fedmoe.models.families.catalogue import Size, sizes_of

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LATENT_ATTENTION = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
"""Multi-head latent attention: queries, keys and values through narrow projections."""


@dataclass(frozen=True)
class Form:
    """The form of an experts module: the layout of its weights and how they are applied."""

    gated: bool = True
    """Half of `gate_up_proj` gates the other half; else there is `up_proj` alone, activated."""
    bias: bool = False
    """Both weights have a bias, such as `down_proj_bias`."""
    transposed: bool = False
    """Weights are (experts, in, out) rather than (experts, out, in)."""
    own_gate: bool = False
    """The module combines gate and up in its own way."""
    weighs_input: bool = False
    """A router's weight multiplies an expert's input rather than its output."""


def through_interface(model: nn.Module) -> None:
    """Let transformers' experts interface call our fast path."""
    experts.register()
    model.set_experts_implementation(experts.IMPLEMENTATION)  # pyright: ignore


def nothing(_layer: Any) -> None:
    """Most routers read `top_k` by themselves."""


@dataclass(frozen=True)
class Family:
    """A family of models with one `model_type` of transformers."""

    name: str
    model_type: str
    task: Literal["causal", "seq2seq"] = "causal"
    """The form of task of its models: see `models.tasks`."""
    block: str = "mlp"
    """Name, in a decoder layer, of the module with router and experts."""
    router: str = "gate"
    """Name of the router in that module."""
    attention: tuple[str, ...] = ATTENTION
    """Linear layers outside the experts that get LoRA, by the end of their path."""
    scores: Literal["softmax", "softmax of the chosen", "sigmoid", "sparsemixer"] = "softmax"
    """The function of a router's logits."""
    normalised: Literal["always", "never", "config"] = "always"
    """Division of the chosen weights by their sum; `config`: where `norm_topk_prob` is set."""
    scaled: str = ""
    """The config's name of a constant factor on the weights."""
    corrected: bool = False
    """A bias per expert, which is no part of its weight, is added to choose."""
    groups: bool = False
    """Experts are chosen within the best groups of experts."""
    capacity: bool = False
    """An expert takes a limited number of tokens of a sequence; the others meet none."""
    shared: bool = False
    """Every token also meets a shared expert."""
    form: Form = field(default_factory=Form)
    linears: tuple[str, str] | None = None
    """Names of an expert's two linear layers, where the class keeps its experts one by one."""
    padded_cache: bool = True
    """transformers decodes a left-padded batch correctly with a cache."""
    step: int | str = 64
    """Tokens that its recurrent layers take at once, or the config's name of that number: a dry run
    takes as many, see `saved_tensors`."""
    notes: str = ""
    """Remarks to read before a run."""
    no_peft: str = ""
    """The reason why an adapter cannot be exported for PEFT; empty where it can."""
    install: Callable[[nn.Module], None] = through_interface
    """Puts a model on the expert fast path; doing it twice is doing it once."""
    prepare_router: Callable[[nn.Module], None] = nothing
    """Makes a router honour `top_k` that would not by itself."""
    scale_logits: Callable[[Any, Tensor], Tensor] | None = None
    """The step behind the output head, from the config and the head's output."""
    listed: bool = True
    """False for a model type that is not in `FAMILIES`."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Published models of the family."""
        return sizes_of(self.model_type)

    @property
    def plain_softmax(self) -> bool:
        """True where routers take the k largest logits, weighed by their softmax, and no more."""
        odd = self.corrected or self.groups or self.scaled or self.capacity
        return self.scores.startswith("softmax") and not odd

    def is_plain(self, router: nn.Module) -> bool:
        """Return whether this router does: configs of DBRX and Command A+ may differ."""
        rule = getattr(router, "norm", 1.0), getattr(router, "expert_selection_fn", "softmax")
        return self.plain_softmax and rule == (1.0, "softmax")

    def renormalises(self, router: nn.Module) -> bool:
        """Return whether this router divides the chosen weights by their sum."""
        configured = self.normalised == "config" and bool(getattr(router, "norm_topk_prob", False))
        return self.normalised == "always" or configured

    @property
    def rule(self) -> str:
        """The rule of its routers, in a few words."""
        normal = {"always": ", normalised", "never": "", "config": ", normalised if configured"}
        parts = [self.scores + ("" if "chosen" in self.scores else normal[self.normalised])]
        parts += ["groups"] * self.groups + ["bias to choose"] * self.corrected
        parts += ["capacity"] * self.capacity
        return "; ".join(parts + ["scaled"] * bool(self.scaled))
