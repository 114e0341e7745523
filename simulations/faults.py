"""Faults on purpose: lost, slow, damaged and killed clients, and a server that dies.

`--faults drop=.1,slow=3x,corrupt=.01,nan=.02,kill-client=.05,kill-server@3`. Who is struck depends
on `(seed, round, client)` alone: the same faults strike again in a run that is resumed, and beside
another strategy.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from fedmoe.adapter import Adapter
from fedmoe.config.words import not_one_of
from fedmoe.errors import ConfigError, Fault, WireError
from fedmoe.prepared import Prepared
from fedmoe.rounds import ServerState, Transport
from fedmoe.seeds import numpy_rng
from fedmoe.wire import Failure, Message, Task, Update, pack_update
from simulations.answers import read
from simulations.pool import Pool

Name = Literal["drop", "slow", "corrupt", "nan", "kill-client", "kill-server"]
Strike = Literal["kill-client", "drop", "corrupt", "nan", "slow"]
"""What can happen to one client in one round; the first two leave nothing for the others."""
MOST_BYTES = 16
"""Bytes that are flipped at most in one damaged message."""
RATE = "a probability from 0 to 1, such as .1"
ALLOWED = {
    "drop": RATE, "corrupt": RATE, "nan": RATE, "kill-client": RATE,
    "slow": "a factor of 1 or more for everyone (3x), or for a share of client rounds (3x@.2)",
    "kill-server": "kill-server@N, N the round after which the server dies",
}  # fmt: skip


@dataclass(frozen=True)
class Faults:
    """How often what goes wrong: probabilities per client and round."""

    drop: float = 0.0
    """The update is lost on its way."""
    corrupt: float = 0.0
    """Some bytes of the update's message are flipped."""
    nan: float = 0.0
    """One value of the update is NaN."""
    kill_client: float = 0.0
    """The client dies before it has trained."""
    slow: float = 1.0
    """Factor on virtual seconds."""
    slow_share: float = 1.0
    """Probability that it counts."""
    kill_server: int | None = None
    """Round after which the server dies."""

    def of(self, seed: int, round: int, client: int) -> tuple[Strike, ...]:
        """What strikes a client in a round.

        A rate that is changed changes nothing about the others: each kind has a draw of its own.
        """
        rates: dict[Strike, float] = {
            "kill-client": self.kill_client, "drop": self.drop, "corrupt": self.corrupt,
            "nan": self.nan, "slow": self.slow_share if self.slow > 1 else 0.0,
        }  # fmt: skip
        draws = numpy_rng(seed, "faults", round, client).random(len(rates))
        drawn = zip(rates.items(), draws, strict=True)
        struck: list[Strike] = [name for (name, rate), u in drawn if u < rate]
        alone = struck and struck[0] in ("kill-client", "drop")
        return tuple(struck[:1] if alone else struck)

    def slowdown(self, seed: int, round: int, client: int) -> float:
        """The factor on the virtual seconds of a client's round."""
        return self.slow if "slow" in self.of(seed, round, client) else 1.0


@dataclass(frozen=True)
class Struck:
    """A fault that was injected, and what came of it."""

    round: int
    client: int
    fault: Strike
    outcome: str


def parse_faults(text: str) -> Faults:
    """The faults named in `text`, as they are written after `--faults`.

    Raises:
        ConfigError: with all that is wrong, and what is allowed.
    """
    found: dict[str, float | int] = {}
    wrong: list[Fault] = []
    for item in filter(None, map(str.strip, text.split(","))):
        name, sign, value = re.fullmatch(r"([^=@]*)([=@]?)(.*)", item, re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in get_args(Name):
            wrong.append(Fault(item, not_one_of(name, [*get_args(Name)])))
        elif name.replace("-", "_") in found:
            wrong.append(Fault(item, f"{name} is there twice"))
        elif (read_value := _value(name, sign, value)) is None:
            wrong.append(Fault(item, f"expected {ALLOWED[name]}"))
        else:
            found |= read_value
    if wrong:
        raise ConfigError("--faults", wrong)
    return Faults(**found)  # type: ignore[arg-type]


def _value(name: str, sign: str, value: str) -> dict[str, float | int] | None:
    """Fields of `Faults`; None for what is not allowed."""
    if name == "kill-server":
        whole = re.fullmatch(r"[1-9]\d{0,8}", value, re.ASCII)
        return {"kill_server": int(value)} if sign == "@" and whole else None
    if sign != "=":
        return None
    if name == "slow":
        factor, at, share = value.partition("@")
        times, part = _number(factor.removesuffix("x")), _number(share) if at else 1.0
        if times is None or part is None or times < 1 or part > 1 or not factor.endswith("x"):
            return None
        return {"slow": times, "slow_share": part}
    rate = _number(value)
    return None if rate is None or rate > 1 else {name.replace("-", "_"): rate}


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,9}\.?\d*|\.\d+", text, re.ASCII) else None


class Faulty:
    """A transport on which things go wrong; it stands between the round loop and another one."""

    def __init__(
        self, transport: Transport, faults: Faults, prepared: Prepared,
        told: Callable[[Struck], None] = lambda _: None, kill: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Strike what passes.

        Args:
            transport: carries out the tasks of those who live.
            faults: how often what goes wrong.
            prepared: the run, whose seed draws the faults and whose door reads what is damaged.
            told: is told of every fault.
            kill: kills a worker, where there are any; see `worker_killer`.
        """
        self.transport, self.faults, self.prepared = transport, faults, prepared
        self.told, self.kill = told, kill

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Update | Failure]:
        """One answer per task, in order; see `rounds.Transport`."""
        seed = self.prepared.experiment.seed
        struck = [self.faults.of(seed, task.round, task.client) for task in tasks]
        alive = [t for t, s in zip(tasks, struck, strict=True) if "kill-client" not in s]
        answers = iter(self.transport(alive))
        for task, strikes in zip(tasks, struck, strict=True):
            if "kill-client" in strikes:
                yield self._killed(task)
            else:
                yield self._passed(task, next(answers), strikes)
        # The transport has things to do after its last answer.
        assert next(answers, None) is None, "more answers than tasks"

    def _killed(self, task: Task) -> Failure:
        if self.kill:
            self.kill()
        self._tell(task, "kill-client", "no answer")
        return Failure(task.round, task.client, "killed by --faults")

    def _passed(
        self, task: Task, answer: Update | Failure, strikes: Sequence[Strike]
    ) -> Update | Failure:
        """An answer after what struck it; a client that has failed by itself is left alone."""
        for strike in strikes:
            if isinstance(answer, Failure):
                return answer
            match strike:
                case "drop":
                    answer = Failure(task.round, task.client, "dropped by --faults")
                    self._tell(task, strike, "lost")
                case "slow":
                    self._tell(task, strike, f"{self.faults.slow:g} times its virtual seconds")
                case "corrupt" | "nan":
                    answer = self._damaged(task, answer, strike)
        return answer

    def _damaged(
        self, task: Task, update: Update, strike: Literal["corrupt", "nan"]
    ) -> Update | Failure:
        """What the door makes of a damaged update."""
        e = self.prepared.experiment
        rng = numpy_rng(e.seed, "faults", task.round, task.client, strike)
        try:
            if strike == "nan":
                message = pack_update(with_nan(update, rng), e.upload)
            else:
                message = flipped(pack_update(update, e.upload), rng)
        except WireError as error:  # a compression that cannot write a NaN down
            answer = Failure(task.round, task.client, str(error), error.code)
        else:
            answer = read(self.prepared, message, task)
        refused = isinstance(answer, Failure)
        outcome = f"refused: {answer.reason}" if refused else "not noticed"
        self._tell(task, strike, outcome)
        return answer

    def _tell(self, task: Task, strike: Strike, outcome: str) -> None:
        self.told(Struck(task.round, task.client, strike, outcome))


class ServerKiller:
    """An observer that kills this process once a round is finished, as a power cut would."""

    def __init__(self, faults: Faults) -> None:
        self.round = faults.kill_server

    def planned(self, tasks: Sequence[Task]) -> None: ...
    def answered(self, task: Task, answer: Update | Failure) -> None: ...

    def finished(self, state: ServerState) -> None:
        """Kill it; nothing is flushed, closed or said."""
        if state.round == self.round:
            os.kill(os.getpid(), signal.SIGKILL)


def worker_killer(crew: object) -> Callable[[], None] | None:
    """How to kill a worker of a crew, so that its job is done again; None where there are none."""
    if not isinstance(crew, Pool):
        return None

    def kill() -> None:
        pids = [worker.process.pid for worker in crew.force.workers]
        if pids and pids[0]:
            os.kill(pids[0], signal.SIGKILL)

    return kill


def flipped(message: Message, rng: np.random.Generator) -> Message:
    """The message with 1 to `MOST_BYTES` bytes of its buffer changed, if it has any."""
    data = bytearray(message.buffer)
    for _ in range(rng.integers(1, MOST_BYTES + 1) if data else 0):
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
    return Message(message.scalars, bytes(data))


def with_nan(update: Update, rng: np.random.Generator) -> Update:
    """The update with NaN for one of the values that are not zero, if it has any."""
    places = update.delta.flat.nonzero().flatten()
    if not len(places):
        return update
    flat = update.delta.flat.clone()
    flat[places[rng.integers(len(places))]] = float("nan")
    return replace(update, delta=Adapter(update.delta.layout, flat))
