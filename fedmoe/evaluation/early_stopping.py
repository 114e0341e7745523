"""When a run ends before its last round: its validation scores have stopped improving."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from fedmoe.errors import Fault, FedMoEError
from fedmoe.section import section

NUMBERS = ("loss", "score")
"""Those of every evaluation; a run may have further ones by name."""


@section
class EarlyStopping:
    """The end of a run whose scores no longer improve; the best adapter is kept in any case.

    Example:
        >>> rule = EarlyStopping(metric="loss", patience=2)
        >>> losses = [{"round": n, "split": "validation", "loss": x} for n, x in enumerate((3, 1))]
        >>> rule.reason(losses, "validation")
        ''
    """

    metric: Annotated[str, Field(min_length=1)] = "loss"
    """`loss`, `score`, or one of `evaluation.metric` by name: the mean over tiers, on the rows of
    `evaluation.best`."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row without an improvement after which the run ends."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """The least improvement: what is not more than this is none."""
    goal: Literal["lower", "higher"] | None = None
    """The better direction: lower for the loss and higher for all others when omitted."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield evaluations that never happen."""
        if not experiment.evaluation.every:
            said = (
                "looks at validation scores, and evaluation.every is 0; evaluate, or leave it out"
            )
            yield Fault("early_stopping", said)

    def reason(self, scores: Sequence[Mapping[str, Any]], split: str) -> str:
        """Return why a run ends after these evaluations, in a sentence; empty if it continues.

        Args:
            scores: every evaluation so far, of all tiers, by the names of `Evaluation`'s fields.
            split: the one that counts.

        Raises:
            FedMoEError: the evaluations have no such metric.
        """
        lower = (self.goal or ("lower" if self.metric == "loss" else "higher")) == "lower"
        best, best_round, idle = None, 0, 0
        for round, value in self._means(scores, split).items():
            gain = math.inf if best is None else (best - value if lower else value - best)
            if math.isfinite(value) and gain > self.min_delta:
                best, best_round, idle = value, round, 0
            else:
                idle += 1
            if idle >= self.patience:
                more = f" by more than {self.min_delta:g}" if self.min_delta else ""
                was = "" if best is None else f"; {best:.4g} after round {best_round}"
                return (
                    f"stopped early after round {round}: {split} {self.metric} has not improved"
                    f"{more} in {idle} evaluations{was}, {value:.4g} now"
                )
        return ""

    def _means(self, scores: Sequence[Mapping[str, Any]], split: str) -> dict[int, float]:
        """Return the metric's mean over tiers by round."""
        found: dict[int, list[float]] = {}
        for line in scores:
            if line["split"] == split:
                found.setdefault(line["round"], []).append(self._value(line))
        return {round: sum(values) / len(values) for round, values in sorted(found.items())}

    def _value(self, line: Mapping[str, Any]) -> float:
        own = {line.get("metric", "score"): line.get("score")} | dict(line.get("metrics") or {})
        known = own | {name: line[name] for name in NUMBERS if name in line}
        if self.metric not in known:
            there = ", ".join(known)
            raise FedMoEError(
                f"early_stopping.metric {self.metric!r} is none of the evaluations' {there}"
            )
        # The ledger, from which a resumed run reads, has null for what is not finite.
        value = known[self.metric]
        return math.nan if value is None or not math.isfinite(value) else float(value)
