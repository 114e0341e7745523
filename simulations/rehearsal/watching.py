"""One run of a deployment: submitted, disturbed by kills, looked after until it ends."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from fedmoe.errors import FedMoEError
from fedmoe.report.ledger import Record, read_ledger
from simulations.rehearsal.deployment import Deployment
from simulations.rehearsal.kills import Kill, done
from simulations.rehearsal.table import Outcome

MOST_SECONDS = 600.0
"""A run that stands still for longer is given up."""
POLL_SECONDS = 0.2
UPLOAD_POLL_SECONDS = 0.005
"""While a kill waits for an update to be on its way, which takes a fraction of a second."""
MISSED = "not killed: no such process then"
PATIENCE_SECONDS, SHORT_PATIENCE_SECONDS = 30.0, 3.0
"""Without a server app for so long after a submission, an operator submits again; for the shorter
time once there has been one."""
MOST_SUBMISSIONS = 5
"""Without any progress between them; after these an operator gives up."""


class Watched:
    """Looks after one run from its submission to its end."""

    def __init__(self, deployment: Deployment, kills: Sequence[Kill]) -> None:
        self.deployment = deployment
        self.left, self.outcomes = deque(kills), list[Outcome]()
        self.ledger: list[Record] = []
        self.open: tuple[Outcome, float, tuple[int, ...]] | None = None
        """A kill from which the run has not recovered, when it was, and how far the run was."""
        self.absent_since, self.patience = time.monotonic(), PATIENCE_SECONDS
        self.submissions = 0

    def run(self) -> list[Record]:
        """Return the ledger when the run has ended, or has stood still for too long."""
        self.deployment.start(MOST_SECONDS)
        self._submit()
        last, since = self.progress(), time.monotonic()
        while not (self.ended or self.submissions > MOST_SUBMISSIONS):
            if time.monotonic() > since + MOST_SECONDS:
                break
            self._pause()
            self._look()
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
        """Return rounds that are over, updates of the round under way, and whether it ended."""
        number = done(self.ledger)
        answers = sum(r["kind"] == "client" and r["round"] == number + 1 for r in self.ledger)
        return number, answers, int(self.ended)

    def _submit(self) -> None:
        self.deployment.submit()
        self.submissions += 1
        self.absent_since, self.patience = time.monotonic(), PATIENCE_SECONDS

    def _pause(self) -> None:
        """Wait for the next look, or until the update is on its way that the next kill needs."""
        end = time.monotonic() + POLL_SECONDS
        waits = not self.open and self.left and self.left[0].phase == "upload"
        while time.monotonic() < end:
            time.sleep(UPLOAD_POLL_SECONDS if waits else POLL_SECONDS)
            if waits and self.left[0].sends(self.deployment):
                return

    def _look(self) -> None:
        """Read the ledger, and notice if the run has recovered from the last kill."""
        runs = self.deployment.server.state / "work" / "runs"
        for path in runs.glob("*/ledger.jsonl"):
            with suppress(FedMoEError):
                self.ledger = read_ledger(path)
        if self.open and self.progress() > self.open[2]:
            outcome, started, _ = self.open
            outcome.seconds = time.monotonic() - started
            self.open = None

    def _kill(self) -> None:
        """Carry out the next kill if its moment has come and the last one is over."""
        if self.open or not self.left or not self.ledger:
            return
        kill, under_way = self.left[0], done(self.ledger) + 1
        if kill.missed(self.ledger):
            self.outcomes.append(Outcome(self.left.popleft(), under_way, skipped=MISSED))
            return
        victims = kill.victims(self.deployment)
        if not (victims and kill.due(self.ledger, self.ledger[0]["num_rounds"], self.deployment)):
            return
        for pid in victims:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        outcome = Outcome(self.left.popleft(), under_way)
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
            self.absent_since, self.patience = now, SHORT_PATIENCE_SECONDS
        elif now > self.absent_since + self.patience:
            self._submit()
            if self.open:
                self.open[0].submissions += 1
