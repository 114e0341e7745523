"""Token loss and greedy free-running scores of one adapter at every budget tier."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedmoe.adapter import Adapter
from fedmoe.data.examples import Example
from fedmoe.data.text import Tokenizer, Tokens
from fedmoe.evaluation.metrics import Metric
from fedmoe.evaluation.settings import EvaluationSettings
from fedmoe.models.adapted import AdaptedModel
from fedmoe.models.decode import greedy
from fedmoe.training.loss import mean_loss, row_losses


@dataclass(frozen=True)
class EvaluationSet:
    """Examples with their tokens and their verifier."""

    split: str
    examples: Sequence[Example]
    rows: Sequence[Tokens]
    score: Metric | None
    """The verifier of a free-running answer; None: the likelihood of the right one is the score."""


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
        loss = mean_loss(model, data.rows, settings.batch_size, tokenizer.pad_token_id)
        scores, exact = _scores(model, tokenizer, data, settings)
        results.append(
            Evaluation(
                round=round,
                split=data.split,
                tier=tier,
                top_k=top_k,
                loss=loss,
                score=_mean(scores),
                exact_match=_mean(exact),
                examples=len(scores),
                seconds=time.monotonic() - started,
                by_label=_by_label(data.examples, scores),
            )
        )
    return results


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
    order = sorted(range(len(rows)), key=lambda i: rows[i].prompt_length)
    for start in range(0, len(order), settings.batch_size):
        part = order[start : start + settings.batch_size]
        outputs = greedy(
            model.model,
            [rows[i].prompt for i in part],
            settings.max_new_tokens,
            tokenizer.pad_token_id,
            tokenizer.eos_token_id,
        )
        for i, ids in zip(part, outputs, strict=True):
            answers[i] = tokenizer.decode(ids, skip_special_tokens=True).strip()
    return answers


def _by_label(examples: Sequence[Example], scores: Sequence[float]) -> dict[str, float]:
    labels = sorted({e.label for e in examples})
    return {
        label: _mean([s for e, s in zip(examples, scores, strict=True) if e.label == label])
        for label in labels
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
