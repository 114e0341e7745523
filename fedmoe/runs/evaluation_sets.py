"""The examples that a run scores: a fixed draw, its metrics, and whether right answers reach 1."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fedmoe.data.conversations import packed, unpacked
from fedmoe.data.decoded import response_text
from fedmoe.data.wording import Worded, tokenize, turns, word
from fedmoe.errors import DataError, FedMoEWarning
from fedmoe.evaluation.evaluate import EvaluationSet
from fedmoe.evaluation.likelihoods import options_of
from fedmoe.evaluation.metric import Judge, Metric, checked, reads
from fedmoe.evaluation.metrics import VERIFIER, Chosen, of_rows
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.data.examples import Example
    from fedmoe.data.text import TextSettings, Tokens

ROUND_TO = 8
"""The longest answer is a multiple of so many tokens, where it follows the data."""


def evaluation_sets(
    experiment: Experiment,
    validation: Sequence[Example],
    test: Sequence[Example],
    tokenizer: Any,
    form: str,
) -> tuple[dict[str, EvaluationSet], str]:
    """Return a fixed draw of the validation and of the test examples, and their metrics in words.

    It warns of right answers that cannot score 1.

    Raises:
        DataError: there are none, all of them are too long, or no right answer can score 1.
    """
    settings, drawn = experiment.evaluation, Drawing(experiment, tokenizer, form)
    found = {
        "validation": drawn.draw("validation", validation, settings.validation_examples),
        "test": drawn.draw("test", test, settings.test_examples),
    }
    chosen = of_rows(settings.metric, experiment.data, found["test"].examples, found["test"].sizes)
    sets = {split: drawn.scored(split, of_split, chosen) for split, of_split in found.items()}
    return sets, chosen.note()


@dataclass(frozen=True)
class Drawn:
    """Answers to score, with their token ids."""

    examples: Sequence[Example]
    rows: Sequence[Tokens]
    held_out: int
    """Answers that these were drawn from."""

    @property
    def sizes(self) -> list[int]:
        """The tokens of each response, its end included."""
        return [row.num_targets for row in self.rows]


@dataclass(frozen=True)
class Drawing:
    """Answers drawn and prepared by an experiment, a tokenizer and a form of task."""

    experiment: Experiment
    tokenizer: Any
    form: str
    warns: bool = True
    """Whether right answers out of reach are a warning, and an error if all are; else they are
    noted alone."""

    @property
    def text(self) -> TextSettings:
        return self.experiment.data.wording(self.experiment.text)

    def draw(self, split: str, examples: Sequence[Example], most: int) -> Drawn:
        """Return at most so many answers of a split's examples, drawn from the seed.

        Each answer in a conversation is one, given the true messages before it.

        Raises:
            DataError: there are none, or all of them are too long.
        """
        if not examples:
            raise DataError(f"the dataset has no {split} examples")
        every = [turn for example in examples for turn in turns(example)]
        order = numpy_rng(self.experiment.seed, split).permutation(len(every))[:most]
        drawn = [every[i] for i in sorted(order)]
        kept, rows = tokenize(drawn, self.tokenizer, self.text, self.form, answers=True)
        return Drawn(kept, rows, len(every))

    def scored(self, split: str, drawn: Drawn, chosen: Chosen) -> EvaluationSet:
        """Return answers with their metrics, and with what is to be said of unreachable ones.

        Raises:
            DataError: no right answer can score 1, or a metric lacks something in the rows.
        """
        limit = self.experiment.evaluation.max_new_tokens
        most = limit or -(-max(drawn.sizes) // ROUND_TO) * ROUND_TO
        data = EvaluationSet(
            split, drawn.examples, drawn.rows, chosen.metrics, most, held_out=drawn.held_out
        )
        notes = [said for m in chosen.metrics.values() if (said := _lack(m, drawn.examples))]
        if notes and (self.warns or "options" in map(reads, chosen.metrics.values())):
            raise DataError("; ".join(notes))
        if any(reads(metric) == "options" for metric in chosen.metrics.values()):
            data = replace(data, options=[self._options(example) for example in drawn.examples])
        if not chosen.answered:
            idle = "evaluation.max_new_tokens is without effect: no metric reads an answer"
            return replace(data, notes=(idle,) if limit else ())
        own = [m for m in chosen.metrics.values() if isinstance(m, Metric)]
        notes += [said for m in own if (said := m.remark(drawn.examples))]
        more, unreachable = self._reach(data)
        return replace(data, notes=(*notes, *more), unreachable=unreachable)

    def _options(self, example: Example) -> list[Tokens]:
        """Return each option of an example as the response's token ids."""
        each = [_answering(example, option) for option in options_of(example)]
        worded = word(each, self.tokenizer, self.text, self.form, answers=True)
        if bad := [one for one in worded if not isinstance(one, Worded)]:
            raise DataError(f"an option cannot be worded: {bad[0]}")
        return [one.rows[0] for one in worded if isinstance(one, Worded)]

    def _reach(self, data: EvaluationSet) -> tuple[tuple[str, ...], int]:
        """Return what is to be said of right answers, and how many of them cannot score 1."""
        notes, lost, number = [], set(), len(data.rows)
        # An answer without its end token is complete.
        cut = {n for n, row in enumerate(data.rows) if row.num_targets - 1 > data.max_new_tokens}
        if cut:
            longest = max(row.num_targets for row in data.rows)
            notes.append(
                f"warning: {len(cut)} of {number} {data.split} responses are longer than "
                f"evaluation.max_new_tokens = {data.max_new_tokens} (the longest has {longest} "
                "tokens), so no answer to them is complete; raise it, or leave it out"
            )
        for name, metric in data.metrics.items():
            wrong, why = self._wrong(name, data) if reads(metric) == "answers" else ([], "")
            if not wrong:
                continue
            lost |= {*wrong}
            said = f"{len(wrong)} of {number} {data.split} responses cannot score 1 by {name}"
            said = f"{said}: {why}"
            notes.append(f"warning: {said}")
            # A function of the user's own may never give 1, and so be right.
            if self.warns and (isinstance(metric, Metric) or name == VERIFIER):
                if len(wrong) == number:
                    raise DataError(said)
                warnings.warn(said, FedMoEWarning, stacklevel=2)
        return tuple(notes), len(cut | lost)

    def _wrong(self, name: str, data: EvaluationSet) -> tuple[list[int], str]:
        """Return the examples whose own response does not score 1, and the first of them."""
        judge, wrong, why = checked(data.metrics[name], f"evaluation.metric {name!r}"), [], ""
        for number, (example, row) in enumerate(zip(data.examples, data.rows, strict=True)):
            text = response_text(row, self.tokenizer, self.form)
            # Sums of rounded parts may miss 1 by as much.
            if (score := judge(example, text)) < 1 - 1e-9:
                wrong.append(number)
                why = why or f"it gives {score:g} for the response itself, {text!r:.80}"
        return wrong, why


def _lack(metric: Judge, examples: Sequence[Example]) -> str:
    return metric.lacks(examples) if isinstance(metric, Metric) else ""


def _answering(example: Example, option: str) -> Example:
    """Return an example with another response."""
    if not example.conversation:
        return replace(example, response=option)
    messages, tools = unpacked(example.conversation)
    messages[-1] = {**messages[-1], "content": option}
    return replace(example, response=option, conversation=packed(messages, tools or ()))
