"""Metrics that compare an answer with the response, word by word."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

from fedmoe.data.examples import Example, exact_match
from fedmoe.errors import Fault
from fedmoe.evaluation.metric import Metric
from fedmoe.section import section
from fedmoe.system.extras import install, missing

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@section
class ExactMatch(Metric):
    """Score 1 for an answer that is the response but for spacing, else 0."""

    name: Literal["exact_match"] = "exact_match"

    def __call__(self, example: Example, answer: str) -> float:
        return exact_match(example, answer)


@section
class TokenF1(Metric):
    """The harmonic mean of precision and recall of the answer's words, in any order.

    Words are compared without case, punctuation and English articles. Where one side has no word
    left, the score is 1 if the other has none either.

    Source: SQuAD's evaluation script (Rajpurkar et al. 2016, arXiv:1606.05250).
    """

    name: Literal["token_f1"] = "token_f1"

    def __call__(self, example: Example, answer: str) -> float:
        wanted, found = Counter(_words(example.response)), Counter(_words(answer))
        if not wanted or not found:
            return float(wanted == found)
        return 2 * (wanted & found).total() / (wanted.total() + found.total())


@section
class RougeL(Metric):
    """The F-measure of the longest common subsequence of words, as `rouge_score` has it.

    It knows words of the letters a to z and digits alone: a response in another script scores 0.

    Source: Lin 2004, in the package `rouge_score` (`pip install 'fedmoe[rouge]'`).
    """

    name: Literal["rouge_l"] = "rouge_l"
    stem: bool = False
    """True to compare words by their stems (Porter's, English)."""

    def __call__(self, example: Example, answer: str) -> float:
        return _rouge(self.stem).score(example.response, answer)["rougeL"].fmeasure

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield that its package is missing."""
        if missing("rouge_score"):
            said = f"'rouge_l' needs rouge_score, which is not installed; run: {install('rouge')}"
            yield Fault("evaluation.metric", said)


def _words(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


@cache
def _rouge(stem: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # pyright: ignore[reportMissingImports]

    return RougeScorer(["rougeL"], use_stemmer=stem)
