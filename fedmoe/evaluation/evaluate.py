"""Token loss and the metrics of one adapter at every budget tier."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.data.decoded import answer_text, ends_of
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokenizer, Tokens
from fedmoe.evaluation.metric import Judge, scores_of
from fedmoe.messages.scores import NO_SCORE, Scores
from fedmoe.training.loss import row_losses, summed_loss

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel


@dataclass(frozen=True)
class EvaluationSet:
    """Examples with their tokens, and the metrics that they are scored by."""

    split: str
    examples: Sequence[Example]
    rows: Sequence[Tokens]
    metrics: Mapping[str, Judge]
    """By name; the first is the score."""
    max_new_tokens: int
    """Tokens of an answer at most."""
    options: Sequence[Sequence[Tokens]] = ()
    """The options of each multiple-choice example, for a metric that compares them."""
    held_out: int = 0
    """Answers that these were drawn from."""
    notes: tuple[str, ...] = ()
    """What is to be said of right answers that cannot be reached, in sentences."""
    unreachable: int = 0
    """Right answers that cannot score 1."""

    @property
    def sha256(self) -> str:
        """The digest of the examples and their order."""
        texts = [(e.conversation or e.prompt, e.response) for e in self.examples]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ClientScore:
    """One client's means on its own rows."""

    client: int
    name: str
    examples: int
    tokens: int
    """Response tokens, over which the loss is the mean."""
    loss: float
    score: float
    metric: str = "score"
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One adapter on one set at one tier."""

    round: int
    split: str
    tier: str
    top_k: int
    loss: float
    score: float
    """Mean over examples, from 0 to 1; NaN where the metric is `loss`, which gives none."""
    examples: int
    seconds: float
    by_label: dict[str, float]
    """Mean score of each label's examples."""
    by_client: dict[int, dict[str, float]] = field(default_factory=dict)
    """The same of each client, where clients have models of their own."""
    clients: tuple[ClientScore, ...] = ()
    """Each client's, where clients score on their own rows; loss and score above are then the means
    over all their tokens and examples."""
    withheld: int = 0
    """Clients that do not report their scores; they are in none of these numbers."""
    each: tuple[float, ...] = ()
    """Each example's score, where one set is scored with one model."""
    examples_sha256: str = ""
    """Of the set whose examples those are."""
    metric: str = "score"
    """The name of the score."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The means of further metrics, by name, on the same answers."""

    def as_json(self) -> dict[str, Any]:
        """Return all but the scores of single examples, for a ledger."""
        found = asdict(replace(self, each=()))
        return {name: found[name] for name in found if name not in ("each", "examples_sha256")}


class Measured:
    """One model, with the adapter and k that it has, on one set; what metrics ask for, once."""

    def __init__(
        self, model: AdaptedModel, tokenizer: Tokenizer, data: EvaluationSet, batch_size: int
    ) -> None:
        self.model, self.tokenizer, self.data = model, tokenizer, data
        self.batch_size = batch_size

    @cached_property
    def answers(self) -> list[str]:
        """The greedy answer to every example."""
        data = self.data
        return answer_all(
            self.model, self.tokenizer, data.rows, self.batch_size, data.max_new_tokens
        )

    @cached_property
    def losses(self) -> list[float]:
        """The mean loss per token of every response."""
        return self._losses(self.data.rows)

    @cached_property
    def option_losses(self) -> list[list[float]]:
        """The summed loss of every option of every example."""
        flat = [row for rows in self.data.options for row in rows]
        found = iter([x * row.num_targets for x, row in zip(self._losses(flat), flat, strict=True)])
        return [[next(found) for _ in rows] for rows in self.data.options]

    @cached_property
    def scores(self) -> dict[str, list[float]]:
        """Every example's score by each metric."""
        return {name: scores_of(metric, self) for name, metric in self.data.metrics.items()}

    @property
    def each(self) -> tuple[float, ...]:
        """Every example's score; empty where the metric gives none."""
        name, first = next(iter(self.scores.items()))
        return () if name == NO_SCORE else tuple(first)

    def sums(self) -> Scores:
        """Return loss and scores, summed over the examples."""
        data, pad = self.data, self.tokenizer.pad_token_id
        loss, tokens = summed_loss(self.model, data.rows, self.batch_size, pad)
        (metric, first), *others = self.scores.items()
        labels: dict[str, list[float]] = {label: [] for label in sorted(_labels(data))}
        for example, score in zip(data.examples, first, strict=True):
            labels[example.label].append(score)
        return Scores(
            split=data.split,
            metric=metric,
            examples=len(first),
            tokens=tokens,
            loss=loss,
            score=sum(first),
            metrics={name: sum(scores) for name, scores in others},
            labels={label: (len(found), sum(found)) for label, found in labels.items()},
        )

    def _losses(self, rows: Sequence[Tokens]) -> list[float]:
        return row_losses(self.model, rows, self.batch_size, self.tokenizer.pad_token_id)


def _labels(data: EvaluationSet) -> set[str]:
    return {example.label for example in data.examples}


def evaluate(
    model: AdaptedModel,
    tokenizer: Tokenizer,
    data: EvaluationSet,
    adapter: Adapter,
    tiers: Mapping[str, tuple[int, Tensor]],
    batch_size: int,
    round: int,
) -> list[Evaluation]:
    """Measure `adapter` at every tier's `(top_k, rescaler)`, one after another."""
    model.load(adapter)
    results = []
    for tier, (top_k, rescaler) in tiers.items():
        started = time.monotonic()
        model.set_budget(top_k, rescaler)
        measured = Measured(model, tokenizer, data, batch_size)
        sums, seconds = measured.sums(), time.monotonic() - started
        of_set = {"each": measured.each, "examples_sha256": data.sha256}
        results.append(evaluation_of(sums, round, tier, top_k, seconds, **of_set))
    return results


def evaluation_of(
    sums: Scores, round: int, tier: str, top_k: int, seconds: float, **more: Any
) -> Evaluation:
    """Return sums over a set as the means at one tier."""
    return Evaluation(
        round=round,
        split=sums.split,
        tier=tier,
        top_k=top_k,
        **sums.means,
        examples=sums.examples,
        seconds=seconds,
        by_label=sums.by_label,
        **more,
    )


def by_tier(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """One a tier: the mean over its clients, where each was scored with a model of its own."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.tier, []).append(evaluation)
    return [group[0] if len(group) == 1 else _mean_of(group) for group in groups.values()]


def _mean_of(group: list[Evaluation]) -> Evaluation:
    means = {name: _mean([getattr(e, name) for e in group]) for name in ("loss", "score")}
    metrics = {name: _mean([e.metrics[name] for e in group]) for name in group[0].metrics}
    labels = {label: _mean([e.by_label[label] for e in group]) for label in group[0].by_label}
    clients = {client: found for e in group for client, found in e.by_client.items()}
    own = {"by_label": labels, "by_client": clients, "metrics": metrics, "each": ()}
    return replace(group[0], **means, **own, seconds=sum(e.seconds for e in group))


@torch.no_grad()
def answer_all(
    model: AdaptedModel,
    tokenizer: Tokenizer,
    rows: Sequence[Tokens],
    batch_size: int,
    max_new_tokens: int,
) -> list[str]:
    """The greedy answer to every row's prompt, in the order of `rows`."""
    from fedmoe.models.decode import greedy  # with it transformers, which takes seconds

    answers, ends = [""] * len(rows), ends_of(rows, tokenizer)
    order = sorted(range(len(rows)), key=lambda i: rows[i].prompt_length)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        prompts = [rows[i].prompt for i in part]
        pad = tokenizer.pad_token_id
        outputs = greedy(model.model, prompts, max_new_tokens, pad, sorted(ends))
        for i, ids in zip(part, outputs, strict=True):
            answers[i] = answer_text(tokenizer, ids, ends, model.form.name)
    return answers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
