"""What we know of a family of sparse MoE models: where its parts sit and how its routers weigh."""

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
    """How an experts module keeps and applies its weights."""

    gated: bool = True
    """Whether half of `gate_up_proj` gates the other; else it is `up_proj`, activated as it is."""
    bias: bool = False
    """Whether there is a bias on both, such as `down_proj_bias`."""
    transposed: bool = False
    """Whether weights are (experts, in, out) rather than (experts, out, in)."""
    own_gate: bool = False
    """Whether the module combines gate and up in a way of its own."""
    weighs_input: bool = False
    """Whether a router's weight multiplies an expert's input rather than its output."""


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
    task: Literal["causal", "seq2seq", "image"] = "causal"
    """What its models are asked: see `models.tasks`."""
    block: str = "mlp"
    """What the module that holds router and experts is called in a decoder layer."""
    router: str = "gate"
    """The router's name beside the experts."""
    attention: tuple[str, ...] = ATTENTION
    """Which linear layers outside the experts get LoRA, by the end of their path."""
    scores: Literal["softmax", "softmax of the chosen", "sigmoid", "sparsemixer"] = "softmax"
    """What a router makes of its logits."""
    normalised: Literal["always", "never", "config"] = "always"
    """Whether the chosen weights are divided by their sum; `config`: if `norm_topk_prob`."""
    scaled: str = ""
    """The config's name of a constant factor on the weights."""
    corrected: bool = False
    """Whether a bias per expert, which is no part of its weight, is added to choose."""
    groups: bool = False
    """Whether experts are chosen within the best groups of experts."""
    capacity: bool = False
    """Whether an expert takes so many tokens of a sequence and no more: others meet none."""
    shared: bool = False
    """Whether every token also meets a shared expert."""
    form: Form = field(default_factory=Form)
    linears: tuple[str, str] | None = None
    """Names of an expert's two linear layers, where the class keeps its experts one by one."""
    padded_cache: bool = True
    """Whether transformers decodes a left-padded batch rightly with a cache."""
    step: int | str = 64
    """Tokens that its recurrent layers take at one time, or the config's name of that: a dry run is
    of so many, see `saved`."""
    notes: str = ""
    """What to know before a run."""
    no_peft: str = ""
    """Why an adapter cannot be exported for PEFT; empty where it can."""
    install: Callable[[nn.Module], None] = through_interface
    """Puts a model on the expert fast path; doing it twice is doing it once."""
    prepare_router: Callable[[nn.Module], None] = nothing
    """Makes a router honour `top_k` that would not by itself."""
    scale_logits: Callable[[Any, Tensor], Tensor] | None = None
    """What follows the output head, of the config and the head's output."""
    listed: bool = True
    """False for a model type that is not in `FAMILIES`."""

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Published models of the family."""
        return sizes_of(self.model_type)

    @property
    def plain_softmax(self) -> bool:
        """Whether routers take the k largest logits, weighed by their softmax, and no more."""
        odd = self.corrected or self.groups or self.scaled or self.capacity
        return self.scores.startswith("softmax") and not odd

    def is_plain(self, router: nn.Module) -> bool:
        """Whether this router does: configs of DBRX and Command A+ may say otherwise."""
        rule = getattr(router, "norm", 1.0), getattr(router, "expert_selection_fn", "softmax")
        return self.plain_softmax and rule == (1.0, "softmax")

    def renormalises(self, router: nn.Module) -> bool:
        """Whether the weights of the chosen are divided by their sum."""
        asked = self.normalised == "config" and bool(getattr(router, "norm_topk_prob", False))
        return self.normalised == "always" or asked

    @property
    def rule(self) -> str:
        """How a router weighs, in a few words."""
        normal = {"always": ", normalised", "never": "", "config": ", normalised if configured"}
        parts = [self.scores + ("" if "chosen" in self.scores else normal[self.normalised])]
        parts += ["groups"] * self.groups + ["bias to choose"] * self.corrected
        parts += ["capacity"] * self.capacity
        return "; ".join(parts + ["scaled"] * bool(self.scaled))
