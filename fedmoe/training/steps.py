"""The progress of clients within their local rounds, told at every step by whoever trains them."""

from __future__ import annotations

import logging
import mmap
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

LOG = logging.getLogger(__name__)
LOG_SECONDS = 10.0


class Told(Protocol):
    """Is told after a client's step how many of how many are done."""

    def __call__(self, client: int, step: int, steps: int) -> object: ...


def unseen(client: int, step: int, steps: int) -> None:
    """Show nothing."""


class Steps:
    """The steps of all clients of a process, in memory that it shares with forked workers.

    They are shown and nothing follows from them: a number may be a moment old.
    """

    def __init__(self, num_clients: int) -> None:
        memory = mmap.mmap(-1, 8 * max(1, num_clients))
        self.table = np.frombuffer(memory, np.int32).reshape(-1, 2)

    def __call__(self, client: int, step: int, steps: int) -> None:
        if 0 <= client < len(self.table):
            self.table[client] = step, steps

    def of(self, client: int) -> tuple[int, int]:
        """Return the steps that a client has done and is to do in this round; zeros before."""
        if not 0 <= client < len(self.table):
            return 0, 0
        step, steps = self.table[client].tolist()
        return step, steps

    def clear(self) -> None:
        """Begin a round."""
        self.table[:] = 0


class LoggedSteps:
    """Logs a client's steps every few seconds, where no display looks on: on a node."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.begun, self.said = clock, 0.0, 0.0

    def __call__(self, client: int, step: int, steps: int) -> None:
        now = self.clock()
        if step == 1:
            self.begun = self.said = now
        if step == steps or now - self.said < LOG_SECONDS:
            return
        self.said, left = now, (now - self.begun) / (step - 1) * (steps - step)
        LOG.info("client %d: step %d of %d, about %.0f s left", client, step, steps, left)
