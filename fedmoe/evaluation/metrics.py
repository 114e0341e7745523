"""Metrics: functions of an example and a model's answer, in place of the dataset's own score."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

from fedmoe.data.examples import Example, exact_match
from fedmoe.errors import FedMoEError
from fedmoe.section import Component, Open, section

Metric = Callable[[Example, str], float]
"""A function, or an object that is called like one."""


@section
class ExactMatch(Component):
    """Score 1 for an answer that is the response but for spacing, else 0."""

    name: Literal["exact_match"] = "exact_match"

    def __call__(self, example: Example, answer: str) -> float:
        return exact_match(example, answer)


METRICS = Open("fedmoe.metrics", Callable, (ExactMatch,), server_only=True)
"""What `evaluation.metric` in a configuration may name."""


def measured(metric: Metric) -> Metric:
    """Return `metric`, refusing scores that are no finite number.

    Example:
        >>> measured(lambda example, answer: len(answer))(Example("hi", "ho", ""), "hello")
        5.0
    """

    def score(example: Example, answer: str) -> float:
        found = metric(example, answer)
        try:
            if math.isfinite(number := float(found)):
                return number
        except (TypeError, ValueError):
            pass
        raise FedMoEError(
            f"evaluation.metric gives {found!r:.60} for the answer {answer!r:.60}; it should "
            "return a finite number"
        )

    return score
