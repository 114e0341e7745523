"""Scores as sums, so that those of several sets or clients add up, and as a small message."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict

from fedmoe.errors import WireError
from fedmoe.messages.records import MOST_SECONDS, Message
from fedmoe.messages.rows import RowCounts

if TYPE_CHECKING:
    from fedmoe.messages.records import Task

MOST_CHARACTERS = 2**18
MOST_LABELS = 1000
LONGEST_LABEL = 200
MOST_NATS = 1e4
"""Loss of one token beyond which it is damage."""
NO_SCORE = "loss"
"""The metric that gives no score: the loss counts instead."""


class Means(TypedDict):
    """The means of `Scores`."""

    metric: str
    loss: float
    score: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The sums of one adapter's scores over examples, which add up over sets and clients.

    A client sends them for its rows of one split, and the adapter and k of a task.

    Example:
        >>> scores = Scores(split="test", examples=2, tokens=6, loss=3.0, score=1.0)
        >>> scores.means["loss"], scores.means["score"]
        (0.5, 0.5)
    """

    split: str
    metric: str = "exact_match"
    """The name of the score."""
    examples: int = 0
    """Answers that were scored; 0 if the client has none, or withholds its scores."""
    tokens: int = 0
    """Response tokens of those rows."""
    loss: float = 0.0
    """Nats, summed over the tokens."""
    score: float = 0.0
    """Summed over the examples, each from 0 to 1."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The same for further metrics, by name."""
    labels: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """By label: examples, and the sum of their scores; empty if the client withholds them."""
    withheld: bool = False
    """True if the client does not report its scores."""
    rows: RowCounts | None = None
    seconds: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[Scores]) -> Scores:
        """Return the sum of several of one split, of which there is at least one."""
        parts = list(parts)
        labels: dict[str, tuple[int, float]] = {}
        for part in parts:
            for label, (number, score) in part.labels.items():
                before = labels.get(label, (0, 0.0))
                labels[label] = before[0] + number, before[1] + score
        names = ("examples", "tokens", "loss", "score", "seconds")
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        metrics = {name: sum(part.metrics[name] for part in parts) for name in parts[0].metrics}
        sorted_labels = dict(sorted(labels.items()))
        return replace(parts[0], **sums, metrics=metrics, labels=sorted_labels, rows=None)

    @property
    def means(self) -> Means:
        """Return loss per token, and scores per example; NaN where the metric gives none."""
        return {
            "metric": self.metric,
            "loss": self.loss / self.tokens,
            "score": math.nan if self.metric == NO_SCORE else self.score / self.examples,
            "metrics": {name: total / self.examples for name, total in self.metrics.items()},
        }

    @property
    def by_label(self) -> dict[str, float]:
        """Return the mean score of each label's examples."""
        if self.metric == NO_SCORE:
            return {}
        return {label: score / number for label, (number, score) in self.labels.items()}


def pack_scores(scores: Scores, task: Task) -> Message:
    """Return a client's scores as the answer to a task."""
    values = asdict(scores) | {"round": task.round, "client": task.client, "name": task.name}
    values |= {"tier": task.tier, "top_k": task.top_k}
    return Message(json.dumps(values), b"")


def unpack_scores(
    message: Message,
    task: Task,
    split: str,
    *,
    metrics: Sequence[str],
    most_examples: int,
    most_tokens: int,
    accounts: bool = True,
) -> Scores:
    """Return the scores in a message, checked against the task that they answer.

    Args:
        message: a client's answer.
        task: what it was asked.
        split: the split that it was to score.
        metrics: the names of the run's metrics, the score's first.
        most_examples: rows that a client scores at most.
        most_tokens: tokens of one row at most.
        accounts: whether rows are to be known; else an account that is there is dropped.

    Raises:
        WireError: scores that no honest client could send; says which number, and its bounds.
    """
    values = _values(message)
    _check_asked(values, task, split, metrics[0])
    if len(message.buffer):
        raise WireError(f"scores with a buffer of {len(message.buffer)} bytes; expected 0", "size")
    examples = _number(values, "examples", int, most_examples)
    tokens = _number(values, "tokens", int, examples * most_tokens)
    if tokens < examples:
        raise WireError(f"tokens are {tokens} for {examples} examples; expected more", "scalars")
    loss = _number(values, "loss", float, tokens * MOST_NATS)
    score = _number(values, "score", float, examples)
    others = _metrics(values.pop("metrics", None), metrics[1:] if examples else (), examples)
    seconds = _number(values, "seconds", float, MOST_SECONDS)
    if type(withheld := values.pop("withheld", None)) is not bool or (withheld and examples):
        raise WireError(f"withheld is {withheld!r:.60} with {examples} examples", "scalars")
    labels = _labels(values.pop("labels", None), examples)
    given = values.pop("rows", None)
    counts = RowCounts.checked(given) if accounts else None
    # A conversation is one row with several answers, each of which is scored.
    if examples and not getattr(counts, split, 1):
        raise WireError(f"{examples} {split} examples; its account has no row", "scalars")
    if values:
        raise WireError(f"scores have {sorted(values)!s:.200}, which is unknown", "scalars")
    return Scores(
        split=split,
        metric=metrics[0],
        examples=examples,
        tokens=tokens,
        loss=loss,
        score=score,
        metrics=others,
        labels=labels,
        withheld=withheld,
        rows=counts,
        seconds=seconds,
    )


def _check_asked(values: dict[str, Any], task: Task, split: str, metric: str) -> None:
    """Take out what scores say that they are of, and refuse those of anything but the request."""
    asked = {"round": task.round, "client": task.client, "name": task.name, "tier": task.tier}
    asked |= {"top_k": task.top_k, "split": split, "metric": metric}
    for name, expected in asked.items():
        if values.pop(name, None) != expected:
            raise WireError(f"scores for another {name}; expected {expected!r}", "task")


def _values(message: Message) -> dict[str, Any]:
    if len(message.scalars) > MOST_CHARACTERS:
        raise WireError(
            f"scores of {len(message.scalars)} characters; expected at most {MOST_CHARACTERS}",
            "size",
        )
    try:
        values = json.loads(message.scalars)
    except (ValueError, RecursionError) as error:
        raise WireError(f"scores are not JSON: {error!s:.200}") from error
    if not isinstance(values, dict):
        raise WireError(f"scores are {type(values).__name__}; expected a JSON object")
    return values


def _number(values: dict[str, Any], name: str, kind: type, most: float) -> Any:
    """Take a number from 0 to `most` out of the values."""
    value = values.pop(name, None)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise WireError(f"{name} is {value!r:.60}; expected a number", "scalars")
    if not (0 <= value <= most and math.isfinite(value)):
        raise WireError(f"{name} is {value!r:.60}; expected 0 to {most:g}", "scalars")
    return kind(value)


def _metrics(found: Any, names: Sequence[str], examples: int) -> dict[str, float]:
    """Return the sums of the further metrics, which are those of the run and no others."""
    if not isinstance(found, dict) or {*found} != {*names}:
        raise WireError(f"metrics are {found!s:.60}; expected {', '.join(names)}", "scalars")
    return {name: _number(found, name, float, examples) for name in names}


def _labels(found: Any, examples: int) -> dict[str, tuple[int, float]]:
    """Return the sums by label; those of a client that reports any add up to its examples."""
    if not isinstance(found, dict) or len(found) > MOST_LABELS:
        raise WireError(f"labels are {found!s:.60}; expected at most {MOST_LABELS}", "scalars")
    labels = {}
    for label, pair in found.items():
        named = len(label) <= LONGEST_LABEL and label.isprintable()
        if not named or not isinstance(pair, list) or len(pair) != 2:
            raise WireError(f"label {label!r:.60} has {pair!s:.60}; expected two sums", "scalars")
        both: dict[str, Any] = {"examples": pair[0], "score": pair[1]}
        number = _number(both, "examples", int, examples)
        labels[label] = number, _number(both, "score", float, number)
    if labels and sum(number for number, _ in labels.values()) != examples:
        raise WireError(f"the labels' examples do not sum to {examples}", "scalars")
    return labels
