"""The work of a client in one round, as far as memory and time depend on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from fedmoe.budget.shape import Setting

if TYPE_CHECKING:
    from fedmoe.data.text import Tokens
    from fedmoe.models.memory.stored import Frozen
    from fedmoe.models.memory.subset import Subset


class HowTrained(Protocol):
    """The part of `training.Training` that is used here."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    def micro_batches(self, mean_tokens: float) -> int: ...
    @property
    def recompute(self) -> bool: ...
    @property
    def probe_examples(self) -> int: ...


@dataclass(frozen=True)
class Work:
    """One round of a client."""

    steps: int
    batch_size: int
    accumulation: int
    recompute: bool
    probe_examples: int
    """Examples on which it measures its loss, before and after."""
    longest: int
    """Tokens of the longest example: memory goes by it."""
    longest_targets: int
    """The most response tokens of one."""
    mean_length: int
    """Tokens of a mean example: time goes by it."""
    mean_targets: int
    bytes_down: int = 0
    bytes_up: int = 0
    frozen: Frozen = "full"
    offload: bool = False
    subset: Subset | None = None
    clients: int = 1
    """Clients that do it in one pass on one machine (`simulation.clients_per_pass`)."""

    def setting(self, top_k: int, *, longest: bool) -> Setting:
        """A micro-batch of the longest, or of mean examples."""
        length = self.longest if longest else self.mean_length
        targets = self.longest_targets if longest else self.mean_targets
        return Setting(
            top_k,
            self.batch_size,
            length,
            targets,
            self.recompute,
            self.frozen,
            self.offload,
            self.subset,
            self.clients,
        )

    def with_batch(self, batch_size: int) -> Work:
        """The same steps in smaller micro-batches, and so in more of them."""
        parts = self.batch_size // batch_size
        return replace(self, batch_size=batch_size, accumulation=self.accumulation * parts)

    def smaller(self) -> list[Work]:
        """The same with every smaller micro-batch that divides a step evenly, largest first."""
        sizes = [n for n in range(self.batch_size - 1, 0, -1) if self.batch_size % n == 0]
        return [self.with_batch(size) for size in sizes]


def work_on(
    rows: Sequence[Tokens], training: HowTrained, bytes_down: int = 0, bytes_up: int = 0
) -> Work:
    """A round of training on `rows`, which are some."""
    lengths = [len(row.ids) - 1 for row in rows]
    targets = [row.num_targets for row in rows]
    return Work(
        training.steps,
        training.batch_size,
        training.micro_batches(sum(lengths) / len(rows)),
        training.recompute,
        min(training.probe_examples, len(rows)),
        max(lengths),
        max(targets),
        math.ceil(sum(lengths) / len(rows)),
        math.ceil(sum(targets) / len(rows)),
        bytes_down,
        bytes_up,
    )


def work_at_most(length: int, training: HowTrained, bytes_down: int = 0, bytes_up: int = 0) -> Work:
    """A round on examples that all have `length` tokens, every one of them of a response."""
    return Work(
        training.steps,
        training.batch_size,
        training.micro_batches(length),
        training.recompute,
        training.probe_examples,
        length,
        length,
        length,
        length,
        bytes_down,
        bytes_up,
    )
