"""The kills of a rehearsal: who, at which moment, and how a run's ledger tells the moment."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from fedmoe.report.ledger import Record
from simulations.rehearsal.deployment import Deployment
from simulations.rehearsal.processes import Role

Phase = Literal["begin", "training", "upload", "first answer", "all answers", "end"]
PHASES: dict[Phase, str] = {
    "begin": "before round 1",
    "training": "round {round}, clients at work",
    "upload": "round {round}, an update on its way",
    "first answer": "round {round}, first update here",
    "all answers": "round {round}, just finished",
    "end": "after the last round",
}
LOG_TAIL = 4096
"""Bytes of a SuperNode's log that are read to see what it does now."""


@dataclass(frozen=True)
class Kill:
    """One process to kill at one moment, and which client's if it is one of a client."""

    who: Role
    phase: Phase
    round: int = 0
    client: int = 0

    @property
    def when(self) -> str:
        """The moment, in words."""
        return PHASES[self.phase].format(round=self.round)

    @property
    def key(self) -> str:
        """Its name in the table's file."""
        return f"{self.who}/{self.when}/{self.client}"

    def due(self, ledger: Sequence[Record], num_rounds: int, deployment: Deployment) -> bool:
        """Return whether its moment has come."""
        finished = done(ledger)
        match self.phase:
            case "begin":
                return any(r["kind"] == "run" for r in ledger)
            case "training":
                evaluated = self.round > 1 or any(r["kind"] == "evaluation" for r in ledger)
                at_work = self.victims(deployment, "client app")
                return finished == self.round - 1 and evaluated and bool(at_work)
            case "upload":
                return finished == self.round - 1 and self.sends(deployment)
            case "first answer":
                return any(r["kind"] == "client" and r["round"] == self.round for r in ledger)
            case "all answers":
                return finished >= self.round
            case "end":
                return finished >= num_rounds

    def sends(self, deployment: Deployment) -> bool:
        """Return whether the client's SuperNode is sending an update, by the end of its log."""
        log = [*deployment.clients.values()][self.client].state / "log"
        with suppress(FileNotFoundError), log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            tail = file.read()
            return tail.rfind(b"Sending: train") > tail.rfind(b"Sent successfully")
        return False

    def missed(self, ledger: Sequence[Record]) -> bool:
        """Return whether its moment has passed."""
        early = self.phase not in ("all answers", "end")
        return early and done(ledger) > max(self.round, 1) - 1

    def victims(self, deployment: Deployment, role: Role | None = None) -> list[int]:
        """Return the processes to kill; none if there is no such process now."""
        who = role or self.who
        if who in ("server app", "SuperLink"):
            return deployment.server.pids(who)
        return [*deployment.clients.values()][self.client].pids(who)


def done(ledger: Sequence[Record]) -> int:
    """Return how many rounds a ledger has."""
    return max((r["round"] for r in ledger if r["kind"] == "round"), default=0)


SERVER: tuple[Role, Role] = ("server app", "SuperLink")
LADDER: tuple[tuple[Kill, ...], ...] = (
    *((Kill(w, "begin"), Kill(w, "training", 2), Kill(w, "first answer", 3)) for w in SERVER),
    tuple(Kill("client app", "training", n, client=n - 1) for n in (1, 2, 3)),
    (
        Kill("worker", "training", 1, client=0),
        Kill("worker", "first answer", 2, client=2),
        Kill("worker", "training", 3, client=1),
    ),
    (
        Kill("SuperNode", "begin", client=0),
        Kill("SuperNode", "training", 2, client=1),
        Kill("SuperNode", "first answer", 3, client=2),
    ),
    *((Kill(w, "training", 1), Kill(w, "all answers", 2), Kill(w, "end")) for w in SERVER),
    (Kill("SuperNode", "all answers", 1, client=0), Kill("SuperNode", "end", client=1)),
    (
        Kill("SuperNode", "upload", 1, client=0),
        Kill("SuperLink", "upload", 2, client=1),
        Kill("server app", "upload", 3, client=2),
    ),
)
"""Runs of four rounds, with the kills of each in their order: one has recovered, which shows in an
update, before the next one's moment comes."""
