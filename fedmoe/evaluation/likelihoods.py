"""Metrics of how likely a model finds the response: no answer is generated for them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedmoe.data.examples import Example
from fedmoe.errors import Fault
from fedmoe.evaluation.metric import Metric, Reads
from fedmoe.section import section

if TYPE_CHECKING:
    from fedmoe.evaluation.evaluate import Measured

LOSS = "loss"


@section
class Loss(Metric):
    """No score: the best adapter is chosen by the loss, which is measured in any case."""

    name: Literal["loss"] = "loss"
    reads: ClassVar[Reads] = "losses"

    def scores(self, found: Measured) -> list[float]:
        return [0.0] * len(found.data.examples)


@section
class Likelihood(Metric):
    """exp(-loss): the geometric mean probability of a token of the response, in 0 to 1."""

    name: Literal["likelihood"] = "likelihood"
    reads: ClassVar[Reads] = "losses"

    def scores(self, found: Measured) -> list[float]:
        return [math.exp(-loss) for loss in found.losses]


@section
class Choice(Metric):
    """Multiple choice: score 1 if the right option is the likeliest, of equal ones the first.

    The options are in the column that `data.options` names; the response is one of them. Each is
    worded as the response is, its end included.
    """

    name: Literal["choice"] = "choice"
    normalise: Literal["none", "tokens", "characters"] = "tokens"
    """What an option's log-likelihood is divided by: nothing, its tokens or its characters."""
    reads: ClassVar[Reads] = "options"

    def scores(self, found: Measured) -> list[float]:
        found_scores = []
        for example, losses, rows in zip(
            found.data.examples, found.option_losses, found.data.options, strict=True
        ):
            options = options_of(example)
            sizes = {
                "none": [1] * len(options),
                "tokens": [row.num_targets for row in rows],
                "characters": [max(1, len(option)) for option in options],
            }[self.normalise]
            each = [loss / size for loss, size in zip(losses, sizes, strict=True)]
            best = options[min(range(len(each)), key=each.__getitem__)]
            found_scores.append(float(best == chosen_option(example)))
        return found_scores

    def lacks(self, examples: Sequence[Example]) -> str:
        """Return which example has no options, if one has none."""
        bare = next((e for e in examples if not options_of(e)), None)
        return f"example {bare.prompt!r:.60} has no options; see data.options" if bare else ""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield that no column holds the options."""
        if getattr(experiment.data, "options", None) == "":
            said = "'choice' needs options; set data.options to the column that holds them"
            yield Fault("evaluation.metric", said)


def options_of(example: Example) -> list[str]:
    """Return the options of a multiple-choice example, empty if it has none."""
    found = json.loads(example.extra or "{}")
    return found.get("options", []) if isinstance(found, dict) else []


def chosen_option(example: Example) -> str:
    """Return the option that is right."""
    found = json.loads(example.extra)
    return found["options"][found["right"]]
