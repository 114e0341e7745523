"""What a run with subsets of experts asks for: refusals, and where frozen weights then lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from fedmoe.budget import Tier
from fedmoe.errors import ConfigError, Fault
from fedmoe.models.memory.subset import Subset, drop_fault
from fedmoe.models.rescaling import StaticRescaling

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.models.adapted import AdaptedModel
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import LeftOut


def places(tiers: Iterable[Tier]) -> Iterator[tuple[Frozen, bool]]:
    """Each form that tiers need, and whether its weights may lie elsewhere; for `forms_of`.

    All of a subset's may: what a client keeps is read from there, or brought from there once.
    """
    for tier in tiers:
        yield tier.frozen, tier.offload or tier.subset is not None
        if tier.subset and tier.subset.profile:
            yield tier.subset.profile, True


def possible(
    e: Experiment, model: AdaptedModel, *, on_its_own: bool = False
) -> tuple[LeftOut, ...]:
    """What an automatic budget may do with experts outside a subset in this run.

    A node that plans `on_its_own` merges none: the server, which does not know its plan, would
    refuse an update that names choices of merged experts.
    """
    words: tuple[LeftOut, ...] = ("drop",) if on_its_own else ("merge", "drop")
    tier = Tier(top_k=1)
    return tuple(
        word
        for word in words
        if not [*_faults(e, model, tier, Subset(keep=model.full_top_k, left_out=word))]
    )


def check_subsets(experiment: Experiment, model: AdaptedModel, tiers: Mapping[str, Tier]) -> None:
    """Refuse subsets that this model, or what else the run asks for, cannot honour.

    Raises:
        ConfigError: every fault of every tier.
    """
    asked = {name: tier for name, tier in tiers.items() if tier.subset}
    faults = [
        Fault(f"budget.tiers.{name}.subset{where}", said)
        for name, tier in asked.items()
        for where, said in _faults(experiment, model, tier, tier.subset)  # pyright: ignore
    ]
    if faults:
        raise ConfigError("budget", faults)


def _faults(
    e: Experiment, model: AdaptedModel, tier: Tier, subset: Subset
) -> Iterator[tuple[str, str]]:
    """What is wrong with one tier's subset, each with its place below it."""
    number, full, strategy = model.layout.num_experts, model.full_top_k, e.aggregation
    if subset.keep > number:
        yield ".keep", f"{subset.keep} is over the model's {number} experts"
    most = full if strategy.full_budget or strategy.pooled else tier.top_k
    if subset.keep < most:
        yield (
            ".keep",
            (
                f"{subset.keep} is below the {most} experts that all clients train with under "
                f"aggregation.name {strategy.name!r}"
            ),
        )
    if subset.keep >= number:
        return
    if strategy.name == "ub_smoe":
        yield "", "aggregation.name 'ub_smoe' nudges routers towards all experts; use another"
    if not e.gating.own:
        yield "", f"needs gating.name 'top_k'; {e.gating.name!r} chooses among all experts"
    if e.losses.similarity:
        yield "", "losses.similarity asks experts that are left out; leave it out"
    if subset.merges:
        return
    if fault := drop_fault(model.family, model.layers):
        yield ".left_out", f"'drop' cannot be honoured: {fault}"
    if isinstance(e.rescaling, StaticRescaling) and e.rescaling.by == "mass":
        yield (
            ".left_out",
            "'drop' and rescaling.by 'mass' both change routers' weights; use 'merge'",
        )
    if e.losses.alignment:
        yield (
            ".left_out",
            ("'drop' makes choices impossible that losses.alignment compares; use 'merge'"),
        )
