"""The first line of a run's ledger: what the run is, and what each tier costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedmoe.budget.cost import Cost
    from fedmoe.runs.server_side import ServerSide

OF_TIER = (
    "top_k",
    "parameters",
    "bytes_down",
    "bytes_up",
    "train_flops_per_token",
    "memory_bytes",
    "expert_bytes",
    "full_expert_bytes",
)
"""Costs of a tier that the line gives."""


def opening(server: ServerSide, costs: Mapping[str, Cost]) -> dict[str, Any]:
    """Return the line, with each tier's costs."""
    e = server.setup.experiment
    tiers = {
        tier: {
            "clients": [m.client for m in server.members if m.tier == tier],
            **{name: getattr(cost, name) for name in OF_TIER},
            # Of a tier whose clients are yet to come, as they will be.
            "availability": 0.0 if server.setup.tier(tier).skipped else e.availability(tier),
            **({"device": asdict(e.devices[tier])} if e.devices else {}),
            "memory_options": server.setup.tier(tier).memory_options,
        }
        for tier, cost in costs.items()
    }
    strategy, number = e.aggregation, server.clients_per_round
    step = {"updates_per_step": strategy.updates_per_step(number)}
    return {
        "kind": "run",
        "name": e.name,
        "seed": e.seed,
        "num_rounds": e.rounds,
        "num_clients": len(server.members),
        "clients_per_round": number,
        "model": e.model.path,
        "strategy": strategy.name,
        "robust": e.robust_rule.name,
        **(step if strategy.asynchronous else {}),
        "rescaling": e.rescaling.name,
        "upload": e.upload.name,
        "full_top_k": server.setup.model.full_top_k,
        **({"start": [*server.setup.start.notes]} if server.setup.start else {}),
        **server.facts.header(),
        "tiers": tiers,
    }
