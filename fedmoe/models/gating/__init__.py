"""Gatings: how tokens and experts choose each other, within a client's budget of k.

A gating takes a router's logits and says which experts each token reaches; the weights of the
chosen follow the router's own rule, with which the frozen experts were trained.

- `rule`: what every gating answers; `gate`: the hook that asks it, and what losses read
- `top_k`: the model's own choice; `top_1`; `top_p`: as many as it takes, at most k
- `noisy_top_k`, `hierarchical`, `expert_choice`, `competition`
- `outputs`: what single experts answer, for competition and for similarity losses

UB-SMoE's modulation is no gating: the server changes its bonus per expert, which is part of
`aggregation.name: ub_smoe` (see `models.modulation`).

To add one, write a section that derives from `Rule`, with `choose`, in a separate file, and name it
in `GATINGS`; from outside this package no list is needed.
"""

from typing import Annotated

from fedmoe.models.gating.competition import CompetitionGating
from fedmoe.models.gating.expert_choice import ExpertChoiceGating
from fedmoe.models.gating.gate import Gates, Routed, Turn
from fedmoe.models.gating.hierarchical import HierarchicalGating
from fedmoe.models.gating.noisy_top_k import NoisyTopKGating
from fedmoe.models.gating.rule import Rule
from fedmoe.models.gating.top_1 import Top1Gating
from fedmoe.models.gating.top_k import TopKGating
from fedmoe.models.gating.top_p import TopPGating
from fedmoe.section import Open

GATINGS = Open(
    "fedmoe.gatings",
    Rule,
    (
        TopKGating,
        Top1Gating,
        TopPGating,
        NoisyTopKGating,
        HierarchicalGating,
        ExpertChoiceGating,
        CompetitionGating,
    ),
)
"""Components that `gating` in a configuration may name."""
Gating = Annotated[Rule, GATINGS]

__all__ = [
    "GATINGS",
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
