"""How a client trains in one round."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedmoe.section import section

Decay = Annotated[float, Field(ge=0, lt=1)]


@section
class Training:
    """Local training: AdamW on the flat adapter, with warm-up and decay over the whole run."""

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
    """Compute the experts' activations again in backward: less memory, more time, the same bits."""
    probe_examples: Annotated[int, Field(ge=1)] = 32
    """Local examples on which the loss is measured before and after the round."""

    def rate(self, step: int, round: int, num_rounds: int) -> float:
        """The learning rate of a step: warm-up within the round, linear decay over the run."""
        done = (round - 1 + step / self.steps) / max(1, num_rounds)
        decay = 1 - (1 - self.final_share) * done
        return self.learning_rate * decay * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def reach(self, start: float = 0.0) -> float:
        """The most that AdamW moves a value in one round, from `start` in size or less.

        In a step it is the learning rate times max(1, (1 - beta1) / sqrt(1 - beta2)) (Kingma and Ba
        2015, arXiv:1412.6980, sec. 2.1) and, of weight decay, times the value.
        """
        beta1, beta2 = self.betas
        rates = self.steps * self.learning_rate
        own = rates * max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)
        return own + rates * self.weight_decay * (start + own)
