"""The base of metrics, and the check of what they return."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedmoe.data.examples import Example
from fedmoe.errors import Fault, FedMoEError
from fedmoe.section import Component
from fedmoe.section.component import reference

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import Measured

Reads = Literal["answers", "losses", "options"]
Judge = Callable[[Example, str], float]
"""A function, or an object that is called like one; returns a score from 0 to 1."""


class Metric(Component):
    """A score from 0 to 1 for each example.

    One that judges an answer overrides `__call__`; one that asks the model for more overrides
    `scores`. A plain function of example and answer is a metric, too.

    Example:
        >>> class Short(Metric):
        ...     def __call__(self, example: Example, answer: str) -> float:
        ...         return float(len(answer) < 10)
        >>> Short()(Example("hi", "ho", ""), "hello")
        1.0
    """

    reads: ClassVar[Reads] = "answers"
    """What it needs of a model: answers decoded freely, or likelihoods of the response, or of each
    option."""

    def __call__(self, example: Example, answer: str) -> float:
        """Return the score of an answer."""
        raise NotImplementedError

    def scores(self, found: Measured) -> list[float]:
        """Return the score of each example in the set that was measured."""
        judge = checked(self, f"evaluation.metric {self.name!r}")
        return [judge(e, a) for e, a in zip(found.data.examples, found.answers, strict=True)]

    def remark(self, examples: Sequence[Example]) -> str:
        """Return what a reader of the score has to know of the examples; empty if nothing."""
        return ""

    def lacks(self, examples: Sequence[Example]) -> str:
        """Return what the examples to score lack for it, as a sentence; empty if nothing."""
        return ""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield why it cannot be measured in an experiment."""
        yield from ()


def reads(metric: Judge) -> str:
    """Return what a metric needs of a model; see `Metric.reads`."""
    return getattr(metric, "reads", "answers")


def name_of(metric: Judge) -> str:
    """Return the name of a metric's scores: its own, or the function's without its module.

    Example:
        >>> def brevity(example, answer): ...
        >>> name_of(brevity)
        'brevity'
    """
    own = getattr(metric, "name", None)
    word = own if isinstance(own, str) else reference(metric)
    # Names cross the wire: letters, digits, and few of them.
    word = re.sub(r"^.*:(.*\.)?", "", word)
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", word)[-40:]
    return plain.lstrip("_.-0123456789").rstrip("_") or "own"


def scores_of(metric: Judge, found: Measured) -> list[float]:
    """Return a metric's score of each example in the set that was measured."""
    if isinstance(metric, Metric):
        return metric.scores(found)
    judge = checked(metric)
    return [judge(e, a) for e, a in zip(found.data.examples, found.answers, strict=True)]


def checked(metric: Judge, what: str = "evaluation.metric") -> Judge:
    """Return `metric`, refusing scores that are no number from 0 to 1.

    Args:
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
