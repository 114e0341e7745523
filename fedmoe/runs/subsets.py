"""What a run with subsets of experts asks for: refusals, and where frozen weights then lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fedmoe.budget import Tier
from fedmoe.models.memory.subset import Subset

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
    """Return what an automatic budget may do with experts outside a subset in this run.

    A node that plans `on_its_own` merges none: the server, which does not know its plan, would
    refuse an update that names choices of merged experts.
    """
    words: tuple[LeftOut, ...] = ("drop",) if on_its_own else ("merge", "drop")
    return tuple(
        word
        for word in words
        if not [*Subset(keep=model.full_top_k, left_out=word).misfits(e, model)]
    )
