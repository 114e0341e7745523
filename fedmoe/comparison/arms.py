"""Arms: variants in which a budget lowers the rank, at the costs of one that lowers k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from fedmoe.budget import Levels, Tier
from fedmoe.budget.shape import Shape, shape_of
from fedmoe.errors import ConfigError, Fault

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment

RESPONSES = 0.5
"""The part of all tokens that is taken to meet the output head; all or none change few steps."""


def lower_rank(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """All K experts at every tier, and a rank in proportion to the tier's k."""
    tiers = _ranked(experiment, full_top_k)
    return _with(experiment, {n: replace(t, top_k=full_top_k) for n, t in tiers.items()})


def equal_inference(experiment: Experiment, full_top_k: int | None) -> Experiment:
    """The tier's own k, so that inference costs the same, and a rank in proportion to it."""
    return _with(experiment, _ranked(experiment, full_top_k))


def equal_flops(experiment: Experiment, full_top_k: int | None) -> Experiment:
    r"""All K experts, a rank in proportion to the tier's k, and as much training work as with k.

    $$s_c = s\, F(k_c, R) / F(K, R k_c / K)$$

    in steps, for F the FLOPs of training on a token.
    """
    tiers, e = _ranked(experiment, full_top_k), experiment
    assert full_top_k is not None
    if e.training.epochs is not None or any(t.steps for t in tiers.values()):
        said = "equal FLOPs are made by steps; leave out training.epochs and the tiers' own steps"
        raise ConfigError("baseline", [Fault("training.epochs", said)])
    from fedmoe.models.memory.meta import meta_model  # only these steps need a model

    shape = shape_of(meta_model(e.model, e.adapter))
    made = {}
    for name, tier in tiers.items():
        share = _flops(shape, tier.top_k, 1.0) / _flops(
            shape, full_top_k, (tier.rank or e.adapter.rank) / e.adapter.rank
        )
        steps = max(1, round(e.training.steps * share))
        made[name] = replace(tier, top_k=full_top_k, steps=steps)
    return _with(e, made)


def _flops(shape: Shape, top_k: int, rank: float) -> float:
    """Return training FLOPs of a token, as `budget.cost` counts them, at a share of the rank."""
    frozen = shape.dense + RESPONSES * shape.head + top_k * shape.expert
    lora = rank * (shape.dense_lora + top_k * shape.expert_lora)
    return 2 * (2 * frozen + 3 * lora - shape.first)


def _ranked(experiment: Experiment, full_top_k: int | None) -> Mapping[str, Tier]:
    """Return the tiers, each with a rank of its own or one in proportion to its k."""
    if faults := [*fixed_tiers(experiment, full_top_k, "its K", "an arm of equal cost")]:
        raise ConfigError("baseline", faults)
    assert full_top_k is not None
    tiers, most = experiment.budget.resolved(full_top_k), experiment.adapter.rank
    return {
        name: replace(tier, rank=tier.rank or max(1, round(most * tier.top_k / full_top_k)))
        for name, tier in tiers.items()
    }


def fixed_tiers(
    experiment: Experiment, full_top_k: int | None, unknown: str, needs: str
) -> Iterator[Fault]:
    """Yield that the model is not there to tell what is `unknown`, or that no tiers are fixed."""
    if full_top_k is None:
        said = f"is not there yet, so that {unknown} is not known; make the model first"
        yield Fault("model.path", f"{experiment.model.path!r} {said}")
    if not isinstance(experiment.budget, Levels):
        said = f"plans its tiers when a run begins; {needs} needs fixed tiers"
        yield Fault("budget.name", f"{experiment.budget.name!r} {said}")


def _with(experiment: Experiment, tiers: Mapping[str, Tier]) -> Experiment:
    return replace(experiment, budget=Levels(tiers=dict(tiers)))
