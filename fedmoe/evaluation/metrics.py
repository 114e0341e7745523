"""The metrics that a configuration may name, and the choice where it names none."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fedmoe.data.dataset import Dataset
from fedmoe.data.examples import Example
from fedmoe.errors import Fault
from fedmoe.evaluation.likelihoods import Choice, Likelihood, Loss
from fedmoe.evaluation.metric import Judge, Metric, checked, name_of, reads
from fedmoe.evaluation.overlap import ExactMatch, RougeL, TokenF1
from fedmoe.evaluation.tool_calls import ToolCalls
from fedmoe.section import Open, section

SHORT = 24
"""Median tokens of a response, its end included, up to which exact match is the default."""
REPEATED = 0.5
"""Share of responses that others repeat, from which it is so for longer ones, too."""


VERIFIER = "verifier"


@section
class Verifier(Metric):
    """The data set's own score of an answer."""

    name: Literal["verifier"] = "verifier"

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield that the data set has no verifier."""
        if not has_verifier(experiment.data):
            said = f"data.name {experiment.data.name!r} has no verifier of its own; use exact_match"
            yield Fault("evaluation.metric", said)


METRICS = Open(
    "fedmoe.metrics",
    Callable,
    (Loss, Likelihood, ExactMatch, TokenF1, RougeL, Choice, ToolCalls, Verifier),
    # Clients score where they alone have the rows, and nowhere else.
    server_only=lambda experiment: experiment.data.name != "federated",
    several=True,
)
"""Components that `evaluation.metric` in a configuration may name."""


@dataclass(frozen=True)
class Chosen:
    """The metrics of a run by name; the first is the score."""

    metrics: Mapping[str, Judge]
    why: str = field(default="", compare=False)
    """Why they were chosen; empty where the configuration names them."""

    @classmethod
    def of(cls, metrics: Sequence[Judge], data: Dataset, why: str = "") -> Chosen:
        """Return metrics by name, the data set's own verifier among them."""
        own = checked(data.score, f"the score of data.name {data.name!r}")
        return cls({name_of(m): own if isinstance(m, Verifier) else m for m in metrics}, why)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.metrics,)

    @property
    def answered(self) -> bool:
        """Return whether any of them judges a free-running answer."""
        return any(reads(metric) == "answers" for metric in self.metrics.values())

    def note(self) -> str:
        """Return the metrics, and the reason, as a line for a terminal."""
        first, *others = self.names
        beside = f", beside it {', '.join(others)}" if others else ""
        why = f": {self.why} (evaluation.metric)" if self.why else ""
        return f"scored by {first}{beside}{why}"


def has_verifier(data: Dataset) -> bool:
    """Return whether a data set has a score of its own."""
    return type(data).score is not Dataset.score


def named_metrics(metric: Any) -> tuple[Judge, ...]:
    """Return what `evaluation.metric` names, as a tuple; empty where it names nothing."""
    return metric if isinstance(metric, tuple) else () if metric is None else (metric,)


def of_owners(metric: Any, data: Dataset) -> Chosen:
    """Return the metrics of a run whose rows nobody sees but their owners."""
    why = "the server does not read the owners' rows, by which another could be chosen"
    named = named_metrics(metric)
    return Chosen.of(named or (Likelihood(),), data, "" if named else why)


def of_rows(
    metric: Any, data: Dataset, examples: Sequence[Example], lengths: Sequence[int]
) -> Chosen:
    """Return the metrics that are named, or those that fit the responses.

    Args:
        examples: of the test set.
        lengths: tokens of each response, its end included.
    """
    if named := named_metrics(metric):
        return Chosen.of(named, data)
    if has_verifier(data):
        why = f"data.name {data.name!r} has a verifier of its own"
        return Chosen.of((Verifier(), ExactMatch()), data, why)
    half = statistics.median(lengths)
    times = Counter(example.response for example in examples)
    repeated = sum(n for n in times.values() if n > 1) / len(examples)
    responses = f"half of the responses have {half:g} tokens or fewer, {repeated:.0%} are repeated"
    if half <= SHORT or repeated >= REPEATED:
        return Chosen.of((ExactMatch(),), data, responses)
    return Chosen.of((Likelihood(),), data, f"{responses}: too long and varied to match exactly")
