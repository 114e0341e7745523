"""Which gatings and losses on routing go with which other settings."""

from __future__ import annotations

from collections.abc import Iterator

from fedmoe.aggregation import Aggregation
from fedmoe.models.adapted import AdapterSettings
from fedmoe.models.gating import Rule
from fedmoe.models.rescaling import Rescaling, StaticRescaling
from fedmoe.training.router_losses import RouterLosses


def routing_faults(
    gating: Rule,
    losses: RouterLosses,
    adapter: AdapterSettings,
    rescaling: Rescaling,
    aggregation: Aggregation,
) -> Iterator[str]:
    """What of these cannot be honoured together, each with its place and the likely fix."""
    named = f"gating.name {gating.name!r}"
    if gating.trains_router and not adapter.router:
        yield f"gating.name: {gating.name!r} teaches routers, which are frozen; set adapter.router"
    if not gating.own and aggregation.name == "ub_smoe":
        yield (
            f"gating.name: {gating.name!r} and aggregation.name 'ub_smoe' both change what routers "
            "choose; use 'top_k'"
        )
    if isinstance(rescaling, StaticRescaling) and rescaling.by == "mass" and not gating.own:
        yield f"rescaling.by: 'mass' and {named} both change routers' weights; use 'ratio'"
    elif isinstance(rescaling, StaticRescaling) and gating.serves and not gating.exact_counts:
        yield (
            f"rescaling.name: 'static' takes it that tokens reach k experts, which they do not "
            f"with {named}; use 'none' or 'learned'"
        )
    if losses.load and gating.name != "noisy_top_k":
        yield f"losses.load: estimates loads under noise; {named} has none, use 'noisy_top_k'"
    if losses.alignment and not adapter.router:
        yield "losses.alignment: holds trained routers near, which are frozen; set adapter.router"
