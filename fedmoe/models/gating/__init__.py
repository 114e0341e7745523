"""Gatings: how tokens and experts choose each other, within a client's budget of k.

A gating takes a router's logits and says which experts each token reaches; the weights of the
chosen follow the router's own rule, with which the frozen experts were trained.

- `rule`: what every gating answers; `gate`: the hook that asks it, and what losses read
- `top_k`: the model's own choice; `top_1`; `top_p`: as many as it takes, at most k
- `noisy_top_k`, `hierarchical`, `expert_choice`, `competition`
- `outputs`: what single experts answer, for competition and for similarity losses

UB-SMoE's modulation is no gating: its bonus per expert comes from the server, so that it is part of
`aggregation.name: ub_smoe` (see `models.modulation`).

To add one, write a section with `choose` in a file of its own and name it in `Gating`.
"""

from typing import Annotated

from pydantic import Field

from fedmoe.models.gating.competition import CompetitionGating
from fedmoe.models.gating.expert_choice import ExpertChoiceGating
from fedmoe.models.gating.gate import Gates, Routed, Turn
from fedmoe.models.gating.hierarchical import HierarchicalGating
from fedmoe.models.gating.noisy_top_k import NoisyTopKGating
from fedmoe.models.gating.rule import Rule
from fedmoe.models.gating.top_1 import Top1Gating
from fedmoe.models.gating.top_k import TopKGating
from fedmoe.models.gating.top_p import TopPGating

Gating = Annotated[
    TopKGating
    | Top1Gating
    | TopPGating
    | NoisyTopKGating
    | HierarchicalGating
    | ExpertChoiceGating
    | CompetitionGating,
    Field(discriminator="name"),
]

__all__ = [
    "CompetitionGating",
    "ExpertChoiceGating",
    "Gates",
    "Gating",
    "HierarchicalGating",
    "NoisyTopKGating",
    "Routed",
    "Rule",
    "Top1Gating",
    "TopKGating",
    "TopPGating",
    "Turn",
]
