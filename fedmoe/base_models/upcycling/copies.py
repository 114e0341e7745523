"""A dense feed-forward layer copied into every expert (sparse upcycling)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from fedmoe.base_models.upcycling.dense import DenseFFN, carried, has_bias
from fedmoe.errors import ModelError
from fedmoe.section import section


@section
class Copy:
    """Every expert starts as a copy of the dense layer; training makes them differ."""

    reads_text: ClassVar[bool] = False
    name: Literal["copy"] = "copy"
    num_experts: Annotated[int, Field(ge=2)] = 4
    top_k: Annotated[int, Field(ge=1)] = 2
    """Active experts of the full model; each costs as much as the whole dense layer."""
    router_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the random router weights."""

    def __post_init__(self) -> None:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.num_experts} experts")

    @property
    def full_top_k(self) -> int:
        """Active experts of the full model."""
        return self.top_k

    def active_share(self, top_k: int, _width: int) -> float:
        """Return the neurons that a token meets, over the dense layer's: experts have them all."""
        return float(top_k)

    def check(self, dense: PreTrainedModel) -> None:
        """Refuse a dense model that Mixtral's class cannot represent.

        Raises:
            ModelError: its attention has biases.
        """
        if has_bias(dense):
            raise ModelError(
                "method.name 'copy' makes a Mixtral model, whose attention has no biases, and "
                f"this {dense.config.model_type!r} model has them; use method.name=split"
            )

    def empty(self, dense: PreTrainedModel) -> PreTrainedModel:
        """Return a Mixtral model with the dense one's sizes and unset weights."""
        return MixtralForCausalLM(
            MixtralConfig(
                **carried(dense.config),
                num_local_experts=self.num_experts,
                num_experts_per_tok=self.top_k,
                intermediate_size=dense.config.intermediate_size,
            )
        )

    def layer(
        self, ffn: DenseFFN, _x: Tensor | None, rng: np.random.Generator
    ) -> dict[str, Tensor]:
        r"""Return the tensors of a Mixtral layer that computes `ffn`, named as under `mlp.`.

        $$y = \sum_{e \in TopK} w_e \, FFN(x) = FFN(x), \quad \sum_e w_e = 1$$

        Mixtral renormalises the chosen weights, so this is exact at every k, for any router.

        Source: sparse upcycling (Komatsuzaki et al. 2022, arXiv:2212.05055), with every layer
        sparse and their combine weights renormalised; optimiser state is not carried over.
        """
        gate_up = torch.cat([ffn.gate, ffn.up])
        router = rng.normal(0, self.router_std, (self.num_experts, ffn.gate.shape[1]))
        return {
            "experts.gate_up_proj": gate_up.expand(self.num_experts, -1, -1).contiguous(),
            "experts.down_proj": ffn.down.expand(self.num_experts, -1, -1).contiguous(),
            "gate.weight": torch.from_numpy(router).to(ffn.gate.dtype),
        }
