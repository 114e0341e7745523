"""The record of a rule in one round: its effect on each client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """A rule's effect on one client's update."""

    client: int
    clipped: float
    """The share of its norm that was cut off, in the space of the products."""
    share: float
    """Its mean share of the weight, over the parts that it trained, by the strategy."""
    share_after: float
    """The same by the rule."""
    refused: int
    """Parts that it trained and that the rule took from others alone."""
    trained: int


@dataclass(frozen=True)
class Judgement:
    """A rule's work in one round, for ledger and report."""

    rule: str
    clients: tuple[Verdict, ...]
    parts: int
    """Experts that anybody trained, and shared parts."""
    few: int
    """Those of them with too few reporters for the rule: there it only clipped and capped."""
    needed: int
    """Reporters that the rule needs: 2 f + 3."""

    def as_json(self) -> dict[str, Any]:
        """Return the ledger's line but for its kind and round."""
        facts = {"rule": self.rule, "parts": self.parts, "few": self.few, "needed": self.needed}
        return facts | {"clients": [vars(verdict) for verdict in self.clients]}
