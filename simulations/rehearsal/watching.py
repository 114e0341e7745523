"""One run of a deployment: submitted, disturbed by kills, looked after until it ends."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record, read_ledger
from simulations.rehearsal.kills import Kill
from simulations.rehearsal.processes import GONE, Deployment

POLL_SECONDS = 0.2
UPLOAD_POLL_SECONDS = 0.005
"""While a kill waits for an update to be on its way, which takes a fraction of a second."""
MISSED = "not killed: no such process then"
PATIENCE_SECONDS = 30.0
"""Without a server app for so long after a submission, an operator submits again."""
MOST_SUBMISSIONS = 5
"""Without any progress between them; after these an operator gives up."""

SAID = {
    "client": ("client", "status", "tokens", "loss_before", "loss_after"),
    "evaluation": ("split", "tier", "examples", "loss", "score"),
}
Trace = dict[str, str]
"""By round what its clients reported: unlike adapters give unlike losses."""


@dataclass
class Outcome:
    """What came of a kill."""

    kill: Kill
    round: int
    """The round under way."""
    recovered_seconds: float | None = None
    """Until the run was further than at the kill."""
    submissions: int = 0
    """How often the run had to be submitted again."""
    skipped: str = ""
    too_late: bool = False
    """Whether the update that was on its way had arrived when the process was dead."""


class Watched:
    """Looks after one run from its submission to its end."""

    def __init__(self, deployment: Deployment, kills: Sequence[Kill], most_seconds: float) -> None:
        """`most_seconds` is how long it may stand still before it is given up."""
        self.deployment, self.most_seconds = deployment, most_seconds
        self.left, self.outcomes = deque(kills), list[Outcome]()
        self.ledger: list[Record] = []
        self.open: tuple[Outcome, float, tuple[int, ...]] | None = None
        self.absent_since, self.patience = time.monotonic(), PATIENCE_SECONDS
        self.submissions = 0

    def run(self) -> list[Record]:
        """The ledger when the run has ended, or has stood still for too long."""
        self.deployment.start(self.most_seconds)
        self.submit()
        last, since = self.progress(), time.monotonic()
        while not (self.ended or self.submissions > MOST_SUBMISSIONS):
            if time.monotonic() > since + self.most_seconds:
                break
            self._pause()
            self.ledger = self._read()
            self._recover()
            if not self.ended:
                self._kill()
                self._operate()
            if self.progress() != last:
                last, since, self.submissions = self.progress(), time.monotonic(), 0
        self.outcomes += [Outcome(k, 0, skipped=MISSED) for k in self.left]
        return self.ledger

    @property
    def ended(self) -> bool:
        return bool(self.ledger) and self.ledger[-1]["kind"] == "end"

    def progress(self) -> tuple[int, ...]:
        """How far the run is: rounds that are over, updates of the round under way, its end."""
        done = max((r["round"] for r in self.ledger if r["kind"] == "round"), default=0)
        answers = sum(r["kind"] == "client" and r["round"] == done + 1 for r in self.ledger)
        return done, answers, int(self.ended)

    def submit(self) -> None:
        self.deployment.submit()
        self.submissions += 1
        self.absent_since, self.patience = time.monotonic(), PATIENCE_SECONDS

    def _pause(self) -> None:
        """Until the next look, or until the update is on its way that the next kill waits for."""
        end = time.monotonic() + POLL_SECONDS
        waits = not self.open and self.left and self.left[0].phase == "upload"
        while time.monotonic() < end:
            time.sleep(UPLOAD_POLL_SECONDS if waits else POLL_SECONDS)
            if waits and self.left[0].sends(self.deployment):
                return

    def _read(self) -> list[Record]:
        with suppress(FedMoEError):
            for path in self.deployment.runs.glob("*/ledger.jsonl"):
                return read_ledger(path)
        return self.ledger

    def _recover(self) -> None:
        if self.open and self.progress() > self.open[2]:
            outcome, started, _ = self.open
            outcome.recovered_seconds = time.monotonic() - started
            self.open = None

    def _kill(self) -> None:
        """Carry out the next kill if its moment has come and the last one is over."""
        if self.open or not self.left or not self.ledger:
            return
        kill, num_rounds = self.left[0], self.ledger[0]["num_rounds"]
        done = self.progress()[0]
        if kill.missed(self.ledger):
            self.outcomes.append(Outcome(self.left.popleft(), done + 1, skipped=MISSED))
            return
        victims = kill.victims(self.deployment)
        if not (victims and kill.due(self.ledger, num_rounds, self.deployment)):
            return
        for pid in victims:
            with suppress(*GONE):
                os.kill(pid, signal.SIGKILL)
        outcome = Outcome(self.left.popleft(), done + 1)
        outcome.too_late = kill.phase == "upload" and not kill.sends(self.deployment)
        self.outcomes.append(outcome)
        self.open = outcome, time.monotonic(), self.progress()

    def _operate(self) -> None:
        """Start services that have died; submit the run again when its server app is gone."""
        for service in (self.deployment.server, *self.deployment.clients.values()):
            # Flower 1.41 refuses a SuperNode for as long as it takes the killed one with the same
            # key to be at work: it gives up, and so must be started again and again.
            if service.died:
                service.restart()
        now = time.monotonic()
        if self.deployment.server.pids("server app"):
            self.absent_since, self.patience = now, 3.0
        elif now > self.absent_since + self.patience:
            self.submit()
            if self.open:
                self.open[0].submissions += 1


def trace(ledger: Sequence[Record]) -> Trace:
    """By round what each client reported and what was scored, without what depends on time."""
    found: Trace = {}
    for record in ledger:
        if record["kind"] in SAID:
            words = " ".join(str(record.get(name)) for name in SAID[record["kind"]])
            key = str(record["round"])
            found[key] = f"{found[key]}; {words}" if key in found else words
    return found


def left_out(ledger: Sequence[Record], number: int) -> list[str]:
    """Which clients a round did without, and why."""
    return [
        f"client {r['client']} left out of round {number}: {r['reason']}"
        for r in ledger
        if r["kind"] == "client" and r["round"] == number and r["status"] == "failed"
    ]


def log_tail(path: Path, lines: int = 15) -> str:
    """The end of a log, for a message."""
    if not path.exists():
        return f"{path}: no log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
