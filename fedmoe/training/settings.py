"""The settings of a client's local training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.section import Component, Open, section

MOST_SUMMED = 100_000
"""Steps whose moves are summed one by one; `epochs` of a client that claims many rows are more."""
Decay = Annotated[float, Field(ge=0, lt=1)]


@section
class Training(Component):
    """Local training: AdamW on the flat adapter, with warm-up and decay over the whole run.

    Example:
        >>> training = Training(steps=30, learning_rate=1e-3)
        >>> round(training.rate(step=29, round=1, num_rounds=10), 6)
        0.000913
    """

    steps: Annotated[int, Field(ge=1)] = 20
    """Optimiser steps in one local round."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over a client's own rows in one local round, such as 0.5, in place of `steps`: a
    client of more rows then takes more steps. Its last step is a whole one."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in one micro-batch."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches in one optimiser step."""
    tokens_per_step: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one optimiser step, in place of `accumulation`, a tier's included: micro-batches
    are added until there are as many. Whatever ends a step, each response token weighs the same."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The fall of the learning rate over the whole run, from the peak to `final_share` of it."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the peak that the learning rate falls to by the last round."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """Steps of linear warm-up, in every local round (AdamW starts afresh there)."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of a step's gradient."""
    recompute: bool = False
    """Compute the experts' activations again in backward: less memory, more time, and a bitwise
    identical result."""
    local_step: Annotated[Callable[..., Any], Open("fedmoe.local_steps", Callable)] | None = None
    """A local step of your own in place of AdamW's, as `package.module:name`; see `LocalClient`.
    It follows none of the settings above but `batch_size` and `recompute`."""
    probe_examples: Annotated[int, Field(ge=1)] = 32
    """Local examples on which the loss is measured before and after the round."""

    def faults(self, experiment: Any, model: Any = None) -> Iterator[Fault]:
        """Yield settings without effect, and a strategy whose part in every step is left out."""
        yield from self._idle()
        if self.epochs is not None:
            yield from self._uncounted(experiment)
        if self.local_step is None:
            return
        strategy = experiment.aggregation
        if strategy.corrects:
            said = f"would leave out what aggregation.name {strategy.name!r} does to gradients"
            yield Fault("training.local_step", f"{said}; use another strategy, or no local step")
        if model is not None:
            layouts = strategy.layouts(model.layout, 1)
            if layouts.trained != layouts.model:
                said = f"moves the whole adapter; {strategy.name!r} trains a part of it"
                yield Fault("training.local_step", f"{said}; use another strategy")

    def _idle(self) -> Iterator[Fault]:
        """Yield settings that others make idle."""
        own = type(self)()
        if self.schedule == "constant" and self.final_share != own.final_share:
            said = "has no effect on a constant learning rate; leave it out"
            yield Fault("training.final_share", said)
        if self.epochs is not None and self.steps != own.steps:
            said = f"leave it out, or set it to its default, {own.steps}"
            yield Fault("training.steps", f"has no effect beside training.epochs; {said}")
        if self.tokens_per_step is not None:
            for name in ("accumulation", "epochs"):
                if getattr(self, name) != getattr(own, name):
                    said = "counts a step's examples, and training.tokens_per_step its tokens"
                    yield Fault(f"training.{name}", f"{said}; give one of both")
        if self.local_step is not None:
            for name in ("epochs", "schedule", "tokens_per_step"):
                if getattr(self, name) != getattr(own, name):
                    said = "has no effect on a local step of your own; leave it out"
                    yield Fault(f"training.{name}", said)

    def _uncounted(self, experiment: Any) -> Iterator[Fault]:
        """Yield where a client's number of steps would have to be known without its rows."""
        for name, tier in getattr(experiment.budget, "tiers", {}).items():
            if tier.steps is not None:
                said = "has no effect beside training.epochs; leave it out"
                yield Fault(f"budget.tiers.{name}.steps", said)
        if experiment.devices and experiment.data.name == "federated":
            said = "follows from rows that clients alone know, and `devices` need every client's"
            yield Fault("training.epochs", f"{said} steps beforehand; use training.steps")

    def on(self, num_rows: int) -> Training:
        """Return the settings of a client of so many rows, whose number of steps is known.

        >>> Training(epochs=1.5, batch_size=4).on(10).steps  # of 3 batches an epoch
        5
        """
        if self.epochs is None:
            return self
        batches = self.epochs * -(-num_rows // self.batch_size)
        steps = math.ceil(round(batches / self.accumulation, 9))  # .7 * 10 is a little over 7
        return replace(self, steps=max(1, steps), epochs=None)

    def micro_batches(self, mean_tokens: float) -> int:
        """Return the micro-batches in a step over examples of so many tokens in the mean."""
        if self.tokens_per_step is None:
            return self.accumulation
        return math.ceil(self.tokens_per_step / (self.batch_size * mean_tokens))

    def rate(self, step: int, round: int, num_rounds: int) -> float:
        """Return the learning rate of a step: warm-up in the round, decay over the run."""
        decay = self._decay((round - 1 + step / self.steps) / max(1, num_rounds))
        return self.learning_rate * decay * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def _decay(self, done: float) -> float:
        fallen = {"linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2, "constant": 0.0}
        return 1 - (1 - self.final_share) * fallen[self.schedule]

    def most_tokens(self, max_length: int) -> float:
        """Return the tokens of a round's steps at most; infinite for a local step of one's own.

        >>> Training(steps=30, batch_size=8).most_tokens(512)
        122880
        """
        if self.local_step is not None:
            return math.inf
        batch = self.batch_size * max_length
        step = self.accumulation * batch
        if self.tokens_per_step is not None:
            step = self.tokens_per_step + batch
        return self.steps * step

    def reach(self, start: float = 0.0, round: int = 1, num_rounds: int = 1) -> float:
        r"""Return the most that AdamW moves a value in a round, from `start` in size or less.

        In its t-th step it is the learning rate, which in round 1 falls from its peak, times

        $$c_t = (1 - \beta_1) \sqrt{\frac{\sum_{i<t} (\beta_1^2/\beta_2)^i}{1 - \beta_2}}
          \cdot \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}$$

        whatever the gradients were (Cauchy-Schwarz over the two averages of Kingma and Ba 2015,
        arXiv:1412.6980, Alg. 1; their sec. 2.1 says less, and it does not hold for a value that
        has no gradient after a few steps), and of weight decay times the value. Infinite where
        beta2 is 0 and beta1 is not, and for a local step of one's own.
        """
        beta1, beta2 = self.betas
        if self.local_step is not None or (beta1 and not beta2):
            return math.inf
        t = np.arange(1, min(self.steps, MOST_SUMMED) + 1)
        with np.errstate(over="ignore"):  # where it grows for ever it may leave float64's range
            sums = np.cumsum((beta1**2 / beta2 if beta1 else 0.0) ** (t - 1.0)) / (1 - beta2)
        each = (1 - beta1) * np.sqrt(sums) * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        total = float((each * np.minimum(1, t / (self.warmup_steps + 1))).sum())
        if beyond := self.steps - len(t):  # there c has long come to rest, unless it grows for ever
            total += beyond * float(each.max()) if beta1**2 < beta2 else math.inf
        if total == math.inf:
            return total  # a weight decay of 0 times it would be NaN, which bounds nothing
        # The schedule has its extremes where rounds meet, also beyond the last one.
        ends = (abs(self._decay((n - 1) / max(1, num_rounds))) for n in (round, round + 1))
        rate = self.learning_rate * max(ends)
        own = rate * total
        return own + self.steps * rate * self.weight_decay * (start + own)
