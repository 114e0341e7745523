"""A dense feed-forward layer cut into experts: with all of them active it is the dense layer.

The target is Qwen2-MoE's class, because it can be exact. Its attention is Llama's (OLMoE and
Qwen3-MoE normalise queries and keys); its router does not renormalise the weights of the chosen
experts (Mixtral does), so an expert's weight does not depend on how many others are active; and it
has a shared expert, for neurons that every token needs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel, Qwen2MoeConfig, Qwen2MoeForCausalLM

from fedmoe.base_models.upcycling.dense import DenseFFN, carried, has_bias
from fedmoe.base_models.upcycling.groups import clusters, neighbours
from fedmoe.base_models.upcycling.router import fit_router, random_router
from fedmoe.errors import ModelError
from fedmoe.section import section

LEAST_SHARED = 1
"""Qwen2-MoE has a shared expert; without shared neurons it is one neuron of zeros, because torch
2.13 warns of a width of 0."""


@section
class Split:
    """Cut each feed-forward layer into fine-grained experts, and a part that is always active."""

    reads_text: ClassVar[bool] = True
    name: Literal["split"] = "split"
    num_experts: Annotated[int, Field(ge=2)] = 8
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Active experts of the full model; omitted, all of them, which computes the dense model."""
    shared_width: Annotated[int, Field(ge=0)] = 0
    """Neurons per layer that every token uses: those with the largest mean output on the text.
    The other neurons must divide evenly among the experts."""
    grouping: Literal["neighbours", "clusters"] = "clusters"
    """The neurons that share an expert: neighbours, or those that are active on the same tokens."""
    router: Literal["fitted", "random"] = "fitted"
    """`fitted` predicts from a token how large each expert's output would be."""

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.num_experts} experts")

    @property
    def full_top_k(self) -> int:
        """Active experts of the full model."""
        return self.top_k or self.num_experts

    def active_share(self, top_k: int, width: int) -> float:
        """Return the neurons that a token meets, over the dense layer's `width`."""
        expert = (width - self.shared_width) // self.num_experts
        return (self.shared_width + top_k * expert) / width

    def check(self, dense: PreTrainedModel) -> None:
        """Refuse a split that leaves neurons over.

        Raises:
            ModelError: the neurons that are not shared do not divide evenly among the experts.
        """
        width, num_experts = int(dense.config.intermediate_size), self.num_experts
        rest = width - self.shared_width
        if rest <= 0 or rest % num_experts:
            fitting = [e for e in range(2, 257) if rest > 0 and rest % e == 0]
            near = sorted(sorted(fitting, key=lambda e: abs(e - num_experts))[:4])
            raise ModelError(
                f"method.num_experts is {num_experts}, but the feed-forward layers have {width} "
                f"neurons, of which method.shared_width leaves {rest}; expected a number that "
                "divides them"
                + (f", such as {', '.join(map(str, near))}" if near else "; share fewer")
            )

    def empty(self, dense: PreTrainedModel) -> PreTrainedModel:
        """Return a Qwen2-MoE model with the dense one's sizes and unset weights."""
        width = int(dense.config.intermediate_size)
        return Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                **carried(dense.config),
                num_experts=self.num_experts,
                num_experts_per_tok=self.full_top_k,
                moe_intermediate_size=(width - self.shared_width) // self.num_experts,
                shared_expert_intermediate_size=self.shared_width or LEAST_SHARED,
                intermediate_size=width,
                norm_topk_prob=False,
                qkv_bias=has_bias(dense),
            )
        )

    def layer(self, ffn: DenseFFN, x: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        r"""Return the tensors of a Qwen2-MoE layer that computes `ffn`, named as under `mlp.`.

        With group $N_e$ of neurons, $h = act(G x) * U x$ and router weights $w_e \approx 1/E$:

        $$y = \tfrac12 \, (2 D_S) h_S + \sum_{e \in TopK} w_e \, (E D_{N_e}) h_{N_e}$$

        Every neuron is in the shared part $S$ or in exactly one $N_e$, so at k = E this is `ffn`
        but for the router's spread (logits of standard deviation 1e-4) and rounding. A dropped
        expert leaves out its neurons and changes nothing else.

        Args:
            x: its inputs on some text, (tokens, hidden).

        Source: splitting into clusters of co-active neurons is MoEfication (arXiv:2110.01786), for
        Llama LLaMA-MoE (arXiv:2406.16554); always-active neurons and closed-form routers follow
        the idea of CMoE (arXiv:2502.04416). Both are from memory of the idea: the formulas are
        ours.
        """
        sizes = ffn.neurons(x).abs() * ffn.down.norm(dim=0)
        shared, groups = choose_groups(sizes, self, rng)
        if self.router == "fitted":
            router = fit_router(x, group_outputs(ffn, x, groups))
        else:
            router = random_router(x, self.num_experts, rng)
        if len(shared):
            gate, up, down = ffn.gate[shared], ffn.up[shared], ffn.down[:, shared] * 2
        else:
            zeros = ffn.gate.new_zeros(LEAST_SHARED, ffn.gate.shape[1])
            gate, up, down = zeros, zeros.clone(), zeros.T.contiguous()
        return {
            "experts.gate_up_proj": torch.cat([ffn.gate[groups], ffn.up[groups]], dim=1),
            "experts.down_proj": ffn.down.T[groups].mT.contiguous() * self.num_experts,
            "gate.weight": router,
            "shared_expert.gate_proj.weight": gate,
            "shared_expert.up_proj.weight": up,
            "shared_expert.down_proj.weight": down,
            # A gate of sigmoid(0) = 1/2, which the factor 2 above undoes exactly.
            "shared_expert_gate.weight": ffn.gate.new_zeros(1, ffn.gate.shape[1]),
        }


def choose_groups(sizes: Tensor, method: Split, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the shared neurons (shared,) and each expert's neurons (experts, width), in order.

    `sizes` (tokens, neurons) has the norm of each neuron's output on each token.
    """
    order = sizes.mean(0).argsort(descending=True)
    shared = order[: method.shared_width].sort().values
    rest = order[method.shared_width :].sort().values
    if method.grouping == "clusters":
        group = clusters(sizes[:, rest], method.num_experts, rng)
    else:
        group = neighbours(len(rest), method.num_experts)
    return shared, rest[group.argsort(stable=True)].view(method.num_experts, -1)


def group_outputs(ffn: DenseFFN, x: Tensor, groups: Tensor) -> Tensor:
    """Return the norm of each expert's output on each token, `||D_e h_e||`, (tokens, experts)."""
    h = ffn.neurons(x)
    return torch.stack([(h[:, g] @ ffn.down[:, g].T).norm(dim=1) for g in groups], dim=1)
