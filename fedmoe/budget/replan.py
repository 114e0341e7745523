"""The same plan again between rounds: down at once, up only after a while; and out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

T = TypeVar("T")
LOG = logging.getLogger(__name__)
PATIENCE = 2
"""Rounds in a row for which more must have fitted before k rises."""
CPU_ALLOCATOR = "DefaultCPUAllocator"
"""In the message of the RuntimeError that torch 2.13 raises where main memory is short."""


@dataclass(frozen=True)
class Standing:
    """Where a client stands between two rounds."""

    top_k: int
    """Experts of the next round; 0 to sit out."""
    ceiling: int
    """The most that has not yet run out of memory."""
    roomy_rounds: int = 0
    """Rounds in a row for which more than `top_k` would have fitted."""


@dataclass(frozen=True)
class Observed:
    """A client's knowledge after a round, or after one in which it was skipped."""

    fits: int
    """The largest k that a new plan allows; 0 for none."""
    ran_out_at: int | None = None
    """The least k at which memory ran out in the round; None where it did not."""


def replan(now: Standing, observed: Observed, patience: int = PATIENCE) -> Standing:
    """Where the client stands in the next round.

    - Out of memory: k is at most one less than it ran out at, from now on, whatever plans say.
    - A plan that allows less is followed at once.
    - A plan that allows more must do so for `patience` rounds in a row; then k rises by one.

    So free memory that goes up and down changes nothing, and a client that ran out of memory once
    does not run out of it at the same k again.
    """
    ceiling = now.ceiling
    if observed.ran_out_at is not None:
        ceiling = max(0, min(ceiling, observed.ran_out_at - 1))
    fits = min(observed.fits, ceiling)
    if fits < now.top_k:
        return Standing(fits, ceiling)
    if fits == now.top_k:
        return replace(now, ceiling=ceiling, roomy_rounds=0)
    roomy = now.roomy_rounds + 1
    if roomy >= patience:
        return Standing(now.top_k + 1, ceiling)
    return replace(now, ceiling=ceiling, roomy_rounds=roomy)


def ran_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in main memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)


def within_memory(attempt: Callable[[int], T], top_k: int, who: str = "a client") -> tuple[T, int]:
    """Return the result of `attempt` at the largest k up to `top_k` that memory allows, and k.

    Every lower try is logged as a warning. A round is replayed from its task alone, so an attempt
    that failed half-way leaves nothing behind.

    Raises:
        Exception: the last out-of-memory error, where even k = 1 ran out of it; or any other.
    """
    for k in range(top_k, 1, -1):
        try:
            return attempt(k), k
        except (MemoryError, RuntimeError) as error:
            if not ran_out_of_memory(error):
                raise
            LOG.warning("%s ran out of memory with k = %d; trying k = %d", who, k, k - 1)
        # Outside the handler: only now is the error gone, and with it the frames' tensors.
        release_cached()
    return attempt(1), 1


def release_cached() -> None:
    """Give back the memory that torch keeps for later on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
