"""Whether a search has bracketed its best settings, and which values it lacks where it has not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedmoe.comparison.study import Trial

Value = float | int | bool | str
MOST_FACTOR = 10.0
"""Between a value at the edge and the next one."""


@dataclass(frozen=True)
class Bracket:
    """One setting of one variant: the values that were tried, and where the best one is."""

    variant: str
    setting: str
    tried: tuple[Value, ...]
    """In order, if they are numbers."""
    best: Value
    points: int
    """Points of the variant's whole search."""

    @property
    def inside(self) -> bool | None:
        """Return whether the best value lies between others; None where values have no order.

        A best of 0 that is the least counts: it is where such a setting ends.
        """
        if not numbers(self.tried):
            return None
        return self.tried[0] < self.best < self.tried[-1] or self.best == self.tried[0] == 0  # pyright: ignore

    @property
    def lacks(self) -> list[Value]:
        """Return the value next to a best one at an edge: a step further, or a factor.

        Numbers that are all above 0 go by factors, up to `MOST_FACTOR`. Nothing goes below 0.
        """
        values: Sequence[float] = self.tried  # pyright: ignore
        if self.inside is not False:
            return []
        by_factor, pairs = values[0] > 0, [*pairwise(values)] or [(values[0], 2 * values[0])]
        found = []
        for edge, (a, b), way in ((values[-1], pairs[-1], 1), (values[0], pairs[0], -1)):
            if self.best == edge:
                further = (
                    edge * min(b / a, MOST_FACTOR) ** way if by_factor else edge + way * (b - a)
                )
                found.append(further)
        whole = all(isinstance(v, int) for v in values)
        rounded = [round(v) if whole else float(f"{v:.4g}") for v in found]
        return [v for v in rounded if (v >= 0 or values[0] < 0) and v not in values]


def brackets(trials: Sequence[Trial]) -> list[Bracket]:
    """Return the brackets of every variant that has a chosen trial, setting by setting."""
    found = []
    for chosen in (t for t in trials if t.chosen):
        own = [t.settings for t in trials if t.variant == chosen.variant]
        for place, (setting, best) in enumerate(map(parsed, chosen.settings)):
            values = [*dict.fromkeys(parsed(settings[place])[1] for settings in own)]
            tried = tuple(sorted(values) if numbers(values) else values)  # pyright: ignore
            found.append(Bracket(chosen.variant, setting, tried, best, len(own)))
    return found


def parsed(text: str) -> tuple[str, Value]:
    """Return the setting and the value of a trial's text.

    >>> parsed("training.learning_rate=0.01")
    ('training.learning_rate', 0.01)
    """
    setting, _, value = text.partition("=")
    return setting, json.loads(value)


def numbers(values: Sequence[Value]) -> bool:
    """Return whether all values are numbers, and not switches."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def unbracketed(trials: Sequence[Trial]) -> str:
    """Return a sentence on best values at the edge of their grid; empty without any."""
    at_edge = [f"{b.variant} ({b.setting}={b.best})" for b in brackets(trials) if b.inside is False]
    if not at_edge:
        return ""
    return (
        "Other settings may be better, and change what is concluded: the best value is at the edge "
        f"of its grid for {', '.join(at_edge)}."
    )
