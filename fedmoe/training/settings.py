"""The settings of a client's local training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from fedmoe.errors import Fault
from fedmoe.section import Component, Open, section

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
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples in one micro-batch."""
    accumulation: Annotated[int, Field(ge=1)] = 1
    """Micro-batches in one optimiser step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak learning rate."""
    final_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the peak that the learning rate falls to (linearly) by the last round."""
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
        """Yield a strategy that does its own part in every step, where the step is not ours."""
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

    def rate(self, step: int, round: int, num_rounds: int) -> float:
        """Return the learning rate of a step: warm-up in the round, linear decay over the run."""
        done = (round - 1 + step / self.steps) / max(1, num_rounds)
        decay = 1 - (1 - self.final_share) * done
        return self.learning_rate * decay * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def reach(self, start: float = 0.0) -> float:
        r"""Return the most that AdamW moves a value in one round, from `start` in size or less.

        In its t-th step it is the learning rate times

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
        t = np.arange(1, self.steps + 1)
        sums = np.cumsum((beta1**2 / beta2 if beta1 else 0.0) ** (t - 1.0)) / (1 - beta2)
        each = (1 - beta1) * np.sqrt(sums) * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        own = self.learning_rate * float(each.sum())
        return own + self.steps * self.learning_rate * self.weight_decay * (start + own)
