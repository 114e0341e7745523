"""Faults on purpose, between the round loop and those who carry out its tasks; see `config.faults`.

A damaged message goes through the same door as one that was damaged on a network.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from fedmoe.adapter import Adapter
from fedmoe.errors import WireError
from fedmoe.messages.codec import pack_update, sealed
from fedmoe.messages.records import Failure
from fedmoe.rounds import Observer
from fedmoe.runs.workers import Injected
from fedmoe.seeds import numpy_rng

if TYPE_CHECKING:
    from fedmoe.config.faults import Faults, Strike
    from fedmoe.messages.records import Message, Task, Update
    from fedmoe.messages.scores import Scores
    from fedmoe.rounds import ServerState
    from fedmoe.runs.scorer import Scorer
    from fedmoe.runs.server_side import ServerSide
    from fedmoe.runs.workers import Watch, Workers

A = TypeVar("A")
R = TypeVar("R")

MOST_SECONDS = 60.0
"""For which the answer of a slow client is held back at most."""
MOST_BYTES = 16
"""Bytes that are flipped at most in one damaged message."""


class Faulty:
    """Workers on which things go wrong; it stands between the round loop and another one."""

    def __init__(
        self, workers: Workers, faults: Faults, server: ServerSide, watches: Sequence[Watch] = ()
    ) -> None:
        """Strike what passes.

        Args:
            workers: carries out the tasks of those who live.
            server: the run, whose seed draws the faults and which reads damaged answers.
        """
        self.workers, self.faults, self.server, self.watches = workers, faults, server, watches

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """One answer per task, in order; see `rounds.Transport`."""
        seed = self.server.setup.experiment.seed
        struck = [self.faults.of(seed, task.round, task.client) for task in tasks]
        alive = [t for t, s in zip(tasks, struck, strict=True) if "kill-client" not in s]
        answers = iter(self.workers(alive))
        for task, strikes in zip(tasks, struck, strict=True):
            if "kill-client" in strikes:
                self.workers.lose_worker()
                self._tell(task, "kill-client", "lost")
                yield Failure(task.round, task.client, "killed by --faults", "injected")
            else:
                yield self._passed(task, next(answers), strikes)
        # They have things to do after its last answer.
        assert next(answers, None) is None, "more answers than tasks"

    @property
    def steps(self) -> Any:
        """Return how clients elsewhere are asked for steps of masked sums; None where none are."""
        return getattr(self.workers, "steps", None)

    def map(self, job: Callable[[Scorer, A], R], arguments: Iterable[A]) -> Iterator[R]:
        """Evaluation is the server's own work, which nothing strikes."""
        return self.workers.map(job, arguments)

    def score(self, tasks: Sequence[Task], split: str) -> Iterator[Scores | Failure]:
        """Score at the clients, which nothing strikes."""
        return self.workers.score(tasks, split)

    def present(self, wanted: Collection[str], least: int, seconds: float) -> Collection[str]:
        """Return the clients that are there."""
        return self.workers.present(wanted, least, seconds)

    def lose_worker(self) -> None:
        """Kill a worker, where there are any."""
        self.workers.lose_worker()

    def close(self) -> None:
        """Close the workers."""
        self.workers.close()

    def _passed(
        self, task: Task, answer: Update | Failure, strikes: Sequence[Strike]
    ) -> Update | Failure:
        """An answer after what struck it; a client that has failed by itself is left alone."""
        for strike in strikes:
            if isinstance(answer, Failure):
                return answer
            match strike:
                case "drop":
                    self._tell(task, strike, "lost")
                    return Failure(task.round, task.client, "dropped by --faults", "injected")
                case "slow":
                    if not self.server.setup.experiment.devices:
                        # Of seconds that the client itself has told.
                        time.sleep(min((self.faults.slow - 1) * answer.seconds, MOST_SECONDS))
                    self._tell(task, strike, "slowed")
                case "corrupt" | "nan":
                    answer = self._damaged(task, answer, strike)
        return answer

    def _damaged(
        self, task: Task, update: Update, strike: Literal["corrupt", "nan"]
    ) -> Update | Failure:
        """Return the result of validating a damaged update."""
        e = self.server.setup.experiment
        rng = numpy_rng(e.seed, "faults", task.round, task.client, strike)
        answer: Update | Failure
        try:
            if strike == "nan":
                message = sealed(pack_update(with_nan(update, rng), e.upload))
            else:
                message = flipped(sealed(pack_update(update, e.upload)), rng)
            answer = self.server.read(message, task)
        except WireError as error:  # of the door, or of a compression that cannot write a NaN down
            answer = Failure(task.round, task.client, str(error), error.code)
        self._tell(task, strike, "refused" if isinstance(answer, Failure) else "not noticed")
        return answer

    def _tell(self, task: Task, strike: Strike, outcome: str) -> None:
        for watch in self.watches:
            watch.injected(Injected(task.round, task.client, strike, outcome))


class ServerKiller(Observer):
    """An observer that kills this process once a round is finished, as a power cut would."""

    def __init__(self, faults: Faults, written: Callable[[], None] = lambda: None) -> None:
        """`written` returns when the round's checkpoint is."""
        self.round, self.written = faults.kill_server, written

    def finished(self, state: ServerState) -> None:
        """Kill it; nothing is flushed, closed or said."""
        if state.round == self.round:
            self.written()
            os.kill(os.getpid(), signal.SIGKILL)


def flipped(message: Message, rng: np.random.Generator) -> Message:
    """The message with 1 to `MOST_BYTES` bytes of its buffer changed, if it has any."""
    data = bytearray(message.buffer)
    for _ in range(rng.integers(1, MOST_BYTES + 1) if data else 0):
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    return replace(message, buffer=bytes(data))


def with_nan(update: Update, rng: np.random.Generator) -> Update:
    """The update with NaN for one of the values that are not zero, if it has any."""
    places = update.delta.flat.nonzero().flatten()
    if not len(places):
        return update
    flat = update.delta.flat.clone()
    flat[places[rng.integers(len(places))]] = float("nan")
    return replace(update, delta=Adapter(update.delta.layout, flat))
