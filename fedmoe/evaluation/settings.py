"""The section of a configuration that says when and how scores are measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedmoe.evaluation.metrics import METRICS, Metric
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
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longest answer; a longer one is scored as it stands."""
    clients: Annotated[int, Field(ge=1)] | None = None
    """Where clients score on their own rows: how many do, the same ones each time; all of them when
    omitted."""
    every_tier: bool = False
    """Where clients score on their own rows: score at every tier's k, not at the client's alone."""
    best: Literal["validation", "server"] = "validation"
    """The rows by which the best adapter is chosen: those held out for validation, or, where
    clients hold the data, the server's own (`data.server_test`)."""
    metric: Annotated[Metric, METRICS] | None = None
    """Score of a free-running answer from 0 to 1; the dataset's own when omitted."""
