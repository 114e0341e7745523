"""Token loss and greedy free-running scores of one adapter at every budget tier."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.data.control import control_tokens
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokenizer, Tokens
from fedmoe.evaluation.metrics import Metric
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.models.decode import greedy
from fedmoe.training.loss import row_losses, summed_loss

if TYPE_CHECKING:
    from fedmoe.models.adapted import AdaptedModel


@dataclass(frozen=True)
class EvaluationSet:
    """Examples with their tokens and their verifier."""

    split: str
    examples: Sequence[Example]
    rows: Sequence[Tokens]
    score: Metric | None
    """The verifier of a free-running answer; None: the likelihood of the right one is the score."""
    held_out: int = 0
    """Answers that these were drawn from."""


class Means(TypedDict):
    """The means of `Sums`."""

    loss: float
    score: float
    exact_match: float


@dataclass(frozen=True, kw_only=True)
class Sums:
    """One adapter on one set, in sums, which add up over sets."""

    examples: int
    tokens: int
    """Response tokens."""
    loss: float
    """Nats."""
    score: float
    exact_match: float
    labels: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    """Examples of each label, and the sum of their scores."""

    @classmethod
    def total(cls, parts: Iterable[Sums]) -> Sums:
        """Return the sum of several, of which there is at least one."""
        parts = list(parts)
        labels: dict[str, tuple[int, float]] = {}
        for part in parts:
            for label, (number, score) in part.labels.items():
                before = labels.get(label, (0, 0.0))
                labels[label] = before[0] + number, before[1] + score
        names = ("examples", "tokens", "loss", "score", "exact_match")
        sums = {name: sum(getattr(part, name) for part in parts) for name in names}
        return cls(**sums, labels=dict(sorted(labels.items())))

    @property
    def means(self) -> Means:
        """Return loss per token, and score and exact match per example."""
        return {
            "loss": self.loss / self.tokens,
            "score": self.score / self.examples,
            "exact_match": self.exact_match / self.examples,
        }

    @property
    def by_label(self) -> dict[str, float]:
        """Return the mean score of each label's examples."""
        return {label: score / number for label, (number, score) in self.labels.items()}


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
    exact_match: float


@dataclass(frozen=True)
class Evaluation:
    """One adapter on one set at one tier."""

    round: int
    split: str
    tier: str
    top_k: int
    loss: float
    score: float
    """Mean of the dataset's verifier; exact match where it has none of its own. Where likelihood is
    the score: the mean over examples of exp(-loss), the geometric mean probability of a token."""
    exact_match: float
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


def evaluate(
    model: AdaptedModel,
    tokenizer: Tokenizer,
    data: EvaluationSet,
    adapter: Adapter,
    tiers: Mapping[str, tuple[int, Tensor]],
    settings: EvaluationSettings,
    round: int,
) -> list[Evaluation]:
    """Measure `adapter` at every tier's `(top_k, rescaler)`, one after another."""
    model.load(adapter)
    results = []
    for tier, (top_k, rescaler) in tiers.items():
        started = time.monotonic()
        model.set_budget(top_k, rescaler)
        sums = measure(model, tokenizer, data, settings)
        results.append(
            Evaluation(
                round=round,
                split=data.split,
                tier=tier,
                top_k=top_k,
                **sums.means,
                examples=sums.examples,
                seconds=time.monotonic() - started,
                by_label=sums.by_label,
            )
        )
    return results


def measure(
    model: AdaptedModel, tokenizer: Tokenizer, data: EvaluationSet, settings: EvaluationSettings
) -> Sums:
    """Return the sums over a set of the model as it is, with the adapter and k that it has."""
    loss, tokens = summed_loss(model, data.rows, settings.batch_size, tokenizer.pad_token_id)
    scores, exact = _scores(model, tokenizer, data, settings)
    labels = sorted({e.label for e in data.examples})
    of_label = {
        label: [s for e, s in zip(data.examples, scores, strict=True) if e.label == label]
        for label in labels
    }
    return Sums(
        examples=len(scores),
        tokens=tokens,
        loss=loss,
        score=sum(scores),
        exact_match=sum(exact),
        labels={label: (len(found), sum(found)) for label, found in of_label.items()},
    )


def _scores(
    model: AdaptedModel, tokenizer: Tokenizer, data: EvaluationSet, settings: EvaluationSettings
) -> tuple[list[float], list[float]]:
    """Each example's score, and whether its answer was the response but for spacing."""
    if data.score is None:
        losses = row_losses(model, data.rows, settings.batch_size, tokenizer.pad_token_id)
        return [math.exp(-loss) for loss in losses], [0.0] * len(losses)
    pairs = zip(data.examples, answer_all(model, tokenizer, data.rows, settings), strict=True)
    both = [(data.score(e, a), float(e.response.split() == a.split())) for e, a in pairs]
    return [score for score, _ in both], [exact for _, exact in both]


def by_tier(evaluations: Iterable[Evaluation]) -> list[Evaluation]:
    """One a tier: the mean over its clients, where each was scored with a model of its own."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.tier, []).append(evaluation)
    return [group[0] if len(group) == 1 else _mean_of(group) for group in groups.values()]


def _mean_of(group: list[Evaluation]) -> Evaluation:
    means = {
        name: _mean([getattr(e, name) for e in group]) for name in ("loss", "score", "exact_match")
    }
    labels = {label: _mean([e.by_label[label] for e in group]) for label in group[0].by_label}
    clients = {client: found for e in group for client, found in e.by_client.items()}
    seconds = sum(e.seconds for e in group)
    return replace(group[0], **means, by_label=labels, by_client=clients, seconds=seconds)


@torch.no_grad()
def answer_all(
    model: AdaptedModel, tokenizer: Tokenizer, rows: Sequence[Tokens], settings: EvaluationSettings
) -> list[str]:
    """The greedy answer to every row's prompt, in the order of `rows`."""
    answers = [""] * len(rows)
    # A chat template may end a turn with another token than the tokenizer's end of text.
    control = {*control_tokens(tokenizer).values()}
    last = {row.ids[-1] for row in rows} & control
    ends = sorted({tokenizer.eos_token_id, *last})
    order = sorted(range(len(rows)), key=lambda i: rows[i].prompt_length)
    for start in range(0, len(order), settings.batch_size):
        part = order[start : start + settings.batch_size]
        outputs = greedy(
            model.model,
            [rows[i].prompt for i in part],
            settings.max_new_tokens,
            tokenizer.pad_token_id,
            ends,
        )
        for i, ids in zip(part, outputs, strict=True):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
