"""Metrics: functions of an example and a model's answer, in place of the dataset's own score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fedmoe.data.examples import Example, exact_match
from fedmoe.errors import FedMoEError
from fedmoe.section import Component, Open, section

Metric = Callable[[Example, str], float]
"""A function, or an object that is called like one; returns a score from 0 to 1."""


@section
class ExactMatch(Component):
    """Score 1 for an answer that is the response but for spacing, else 0."""

    name: Literal["exact_match"] = "exact_match"

    def __call__(self, example: Example, answer: str) -> float:
        return exact_match(example, answer)


METRICS = Open("fedmoe.metrics", Callable, (ExactMatch,), server_only=True)
"""Components that `evaluation.metric` in a configuration may name."""


def checked(metric: Metric, what: str = "evaluation.metric") -> Metric:
    """Return `metric`, refusing scores that are no number from 0 to 1.

    Args:
        metric: scores an answer.
        what: its place in the configuration.

    Example:
        >>> checked(lambda example, answer: len(answer) / 10)(Example("hi", "ho", ""), "hello")
        0.5
    """

    def score(example: Example, answer: str) -> float:
        found = metric(example, answer)
        try:
            if 0 <= (number := float(found)) <= 1:
                return number
        except (TypeError, ValueError):
            pass
        raise FedMoEError(
            f"{what} gives {found!r:.60} for the answer {answer!r:.60}; a score is a number from 0 "
            "to 1: correct the function, or scale what it returns"
        )

    return score
