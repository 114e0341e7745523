"""The section of a configuration that says when and how scores are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.evaluation.metric import Judge, name_of
from fedmoe.evaluation.metrics import METRICS, named_metrics
from fedmoe.section import section


@section
class EvaluationSettings:
    """When and on how much data scores are measured."""

    every: Annotated[int, Field(ge=0)] = 1
    """Rounds between evaluations on validation data, the last included; 0 leaves them out."""
    validation_examples: Annotated[int, Field(ge=1)] = 96
    test_examples: Annotated[int, Field(ge=1)] = 400
    """Test examples, drawn once from the seed; used before the first and after the last round."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer, which is scored as it stands; that of the longest response in the set that is
    scored when omitted."""
    clients: Annotated[int, Field(ge=1)] | None = None
    """Where clients score on their own rows: how many do, the same ones each time; all of them when
    omitted."""
    every_tier: bool = False
    """Where clients score on their own rows: score at every tier's k, not at the client's alone."""
    best: Literal["validation", "server"] = "validation"
    """The rows by which the best adapter is chosen: those held out for validation, or, where
    clients hold the data, the server's own (`data.server_test`)."""
    metric: Annotated[Judge | tuple[Judge, ...], METRICS] | None = None
    """One metric, or a list: the first is the score, by which the best adapter is chosen, and all
    are measured on the same answers. When omitted: the data set's verifier if it has one; else
    exact_match for short or repeated responses, and likelihood for others, or for rows that are at
    their owners."""

    published: dict[str, float] = field(default_factory=dict)
    """Scores to compare with, by whose they are: the report lists them beside the run's own."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield metrics that cannot be measured, and those that are there twice."""
        metrics = named_metrics(self.metric)
        for name, number in Counter(map(name_of, metrics)).items():
            if number > 1:
                yield Fault("evaluation.metric", f"{name!r} is there {number} times")
        for metric in metrics:
            if ask := getattr(metric, "faults", None):
                yield from ask(experiment, model)
