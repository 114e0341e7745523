"""Members of a run: a client with its number, perhaps its name, and its tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedmoe.rounds import Member

if TYPE_CHECKING:
    from fedmoe.runs.setup import Setup


def member_of(setup: Setup, client: int, tier: str, name: str = "") -> Member:
    """Return a client of a tier."""
    of = setup.tiers[tier]
    availability = 0.0 if of.skipped else setup.experiment.availability(tier)
    return Member(client, tier, of.top_k, availability, name)


def named_member(setup: Setup, client: int, name: str) -> Member:
    """Return a client that is known by name, in the tier that the budget gives it.

    Raises:
        ConfigError: no tier takes it.
    """
    e = setup.experiment
    return member_of(setup, client, e.budget.tier_of(name, setup.model.full_top_k, e.seed), name)
