"""Text that is longer than a model is made for, and answers that its template does not end."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedmoe.data.wording import unended
from fedmoe.errors import ConfigError, Fault, FedMoEWarning
from fedmoe.evaluation.metric import reads
from fedmoe.models.conventions import most_positions

if TYPE_CHECKING:
    from fedmoe.config.schema import Experiment
    from fedmoe.evaluation.evaluate import EvaluationSet
    from fedmoe.models.adapted import AdaptedModel


def check_limits(
    experiment: Experiment, model: AdaptedModel, tokenizer: Any, sets: Mapping[str, EvaluationSet]
) -> None:
    """Warn of text that is longer than the model is made for, and of answers without an end.

    Raises:
        ConfigError: its positions are learned, and there are none beyond.
    """
    e = experiment
    if model.form.name != "causal":
        return
    if said := unended(tokenizer, e.data.wording(e.text)):
        warnings.warn(said, FedMoEWarning, stacklevel=2)
    most, learned = most_positions(model.model)
    if most is None:
        return
    faults = [*_too_long(e, most, sets.values(), learned)]
    if faults and learned:
        raise ConfigError("experiment", faults)
    for fault in faults:
        warnings.warn(str(fault), FedMoEWarning, stacklevel=2)


def _too_long(
    e: Experiment, most: int, sets: Iterable[EvaluationSet], learned: bool
) -> Iterable[Fault]:
    made = f"model {e.model.path} is made for {most:,} positions, "
    made += "and has no more" if learned else "beyond which its answers get worse"
    if e.text.max_length > most:
        yield Fault("text.max_length", f"{e.text.max_length:,}: {made}; lower it")
        return  # prompts are cut or dropped by the same number
    new = e.evaluation.max_new_tokens
    if new is None:
        return  # it follows the responses
    answered = [x for x in sets if any(reads(m) == "answers" for m in x.metrics.values())]
    rows = [row for found in answered for row in found.rows]
    long = [row.prompt_length for row in rows if row.prompt_length + new > most]
    if long:
        said = f"{len(long)} of {len(rows)} scored prompts have more than {most - new:,} tokens"
        yield Fault("evaluation.max_new_tokens", f"{new}, and {said}: {made}; lower it")
